//! The golden archive verifies, and no lie about it does.

use custody::{
    verdict::{Claim, State},
    verify::{InTurn, Options, run},
};
use custody_tests::golden::{self, Variant, ledger::Hooks, objects::Objects, render};

#[test]
fn the_golden_archive_verifies() {
    let ledger = golden::tell(Variant::Plain, Hooks::default());
    let rendered = render::render(&ledger, &mut render::Truth);
    let size: usize = rendered.objects.values().map(|object| object.len()).sum();
    println!("{} objects, {size} bytes, {} entries", rendered.objects.len(), rendered.entries.len());
    let objects = Objects(rendered.objects);
    for (name, policy) in golden::policies() {
        let options = Options { as_of: golden::AS_OF, ..Options::default() };
        let verdict = run(&objects, &policy, &options, &InTurn).unwrap();
        for fault in &verdict.faults {
            println!("{name}: {fault:?}");
        }
        for finding in &verdict.findings {
            println!("{name}: {finding:?}");
        }
        println!("{name}: {:?}", verdict.counts);
        for claim in [Claim::Unaltered, Claim::Authorised, Claim::Complete] {
            assert_eq!(verdict.claim(claim).0, State::Verified, "{name} {claim:?}");
        }
        assert_eq!(verdict.exit_code(&policy.required), 0, "{name}");
    }
}
