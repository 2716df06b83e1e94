//! `verifier access`: reads the files, asks the library, prints.

use custody::{policy::Policy, verify::Options};
use verifier::{
    access::{self, Question, When},
    failure::Failure,
    reader::Source,
    report::Subject,
    time,
};

use super::{answer, read_disclosure, read_known, read_policy};
use crate::cli::Access;

pub(super) fn run(asked: &Access) -> Result<u8, Failure> {
    let told = read_policy(&asked.policy).and_then(|(policy, printed)| tell(asked, &policy, &printed));
    match told {
        Ok((text, code)) => {
            answer(&text)?;
            Ok(code)
        }
        Err(failure) => {
            if asked.json {
                answer(&access::unreadable_json(&failure.to_string()))?;
            }
            Err(failure)
        }
    }
}

fn tell(asked: &Access, policy: &Policy, printed: &str) -> Result<(String, u8), Failure> {
    let when = match (asked.at, asked.between.as_deref()) {
        (_, Some([from, to])) if from > to => {
            let why = "the second time is before the first\nhint: --between A B, the earlier one first";
            return Err(Failure::NotThere(why.to_owned()));
        }
        (_, Some([from, to])) => When::Between(*from, *to),
        (at, _) => When::At(at.unwrap_or_default()),
    };
    let question = Question {
        when,
        workspace: asked.workspace.clone(),
        gateway: asked.gateway,
        member: asked.member,
        tool: asked.tool.clone(),
        method: asked.method.clone(),
    };
    let options = Options {
        as_of: asked.as_of.unwrap_or_else(time::now),
        known: read_known(&asked.known, policy)?,
        ..Options::default()
    };
    let disclosure = asked.names.as_deref().map(read_disclosure).transpose()?;
    let source = Source::open(&asked.archive)?;
    let said = access::answer(&source, policy, &options, &question, disclosure.as_ref())?;
    let subject = Subject { verdict: &said.verdict, policy: &said.policy, fingerprint: printed, options: &options };
    let show = if asked.json { access::json } else { access::text };
    Ok((show(&said, &subject, &question), said.exit_code()))
}
