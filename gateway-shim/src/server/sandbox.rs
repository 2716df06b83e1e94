//! What a server's process may reach: from a profile to the rules of Landlock, and from these to the kernel.
//!
//! What must hold: [`rules`] is pure and says all that is allowed; what it does not say is refused by the kernel; a kernel
//! that cannot keep all of it starts nothing, unless the configuration says so. A process restricts itself, and neither it
//! nor what it starts gets rid of that again.
//!
//! Landlock knows files, TCP ports, signals and abstract sockets. It does not know UDP (so neither DNS), sockets that are
//! files, processor time, or what somebody else does on behalf of the server; see SHIPPING.md.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
};

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::config::{Profile, Sandbox};

/// The rights that are asked for: those of the newest kernel interface that the tests have run on. What a newer one adds
/// would refuse, on some machines only, what nobody has tried.
const ABI_ASKED: ABI = ABI::V6;

/// What programs of the system need, whatever they do: programs, libraries, and what tells them names and times. Nothing
/// that holds a secret, and no folder in which people keep things.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/passwd",
    "/etc/group",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mime.types",
    "/run/systemd/resolve/stub-resolv.conf",
    "/proc/self",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/version",
    "/proc/filesystems",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/kernel/ngroups_max",
    "/proc/sys/kernel/cap_last_cap",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
];
/// What root may do around a sandbox, and no MCP server needs: to look into other processes (`/proc/PID/environ`, where the kernel asks
/// for one of the first three and then does not ask Landlock), to change the kernel, and to open files by their numbers.
const AROUND: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::DAC_READ_SEARCH);
/// Devices that keep nothing.
const DEVICES: &[&str] = &["/dev/null", "/dev/full"];

/// What is allowed; everything else that these kinds cover is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Read and run, with all that is below.
    pub read: Vec<PathBuf>,
    /// Write too.
    pub write: Vec<PathBuf>,
    /// TCP ports to connect to; absent: all.
    pub connect: Option<Vec<u16>>,
    /// TCP ports to listen on; absent: all.
    pub listen: Option<Vec<u16>>,
    /// Paths that need not be there: the system's, which differ from one machine to the next.
    pub optional: Vec<PathBuf>,
}

/// The rules of a profile; none where there is no sandbox. `program` is the file that is run.
pub fn rules(sandbox: &Sandbox, program: &Path) -> Option<Rules> {
    let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    let mut rules = Rules {
        write: [sandbox.write.clone(), paths(DEVICES)].concat(),
        connect: sandbox.connect.clone(),
        listen: sandbox.listen.clone(),
        optional: paths(DEVICES),
        ..Rules::default()
    };
    match sandbox.profile {
        Profile::None => return None,
        Profile::ReadOnly => rules.read = paths(&["/"]),
        Profile::Confined => {
            rules.read = [sandbox.read.clone(), vec![program.to_owned()], paths(SYSTEM)].concat();
            rules.optional.extend(paths(SYSTEM));
            rules.connect.get_or_insert_default();
            rules.listen.get_or_insert_default();
        }
    }
    Some(rules)
}

/// Restricts this thread, and so the program that it becomes, for good.
///
/// # Errors
/// In words: a path that is not there, or a kernel that cannot keep this.
pub fn restrict(rules: &Rules, best_effort: bool) -> Result<(), String> {
    let level = if best_effort { CompatLevel::BestEffort } else { CompatLevel::HardRequirement };
    let refused = |error: RulesetError| {
        format!(
            "restrict it: this kernel cannot keep the sandbox ({error}); hint: a newer kernel with Landlock, another \
             profile, or best_effort = true"
        )
    };
    let paths = open(&rules.read, AccessFs::from_read(ABI_ASKED), &rules.optional)?.into_iter().chain(open(
        &rules.write,
        AccessFs::from_all(ABI_ASKED),
        &rules.optional,
    )?);
    let kept = || -> Result<_, RulesetError> {
        let mut asked = Ruleset::default()
            .set_compatibility(level)
            .handle_access(AccessFs::from_all(ABI_ASKED))?
            .scope(Scope::from_all(ABI_ASKED))?;
        for (ports, right) in [(&rules.connect, AccessNet::ConnectTcp), (&rules.listen, AccessNet::BindTcp)] {
            if ports.is_some() {
                asked = asked.handle_access(right)?;
            }
        }
        let mut made = asked.create()?.set_compatibility(level);
        for (path, rights) in paths {
            made = made.add_rule(PathBeneath::new(path, rights))?;
        }
        for (ports, right) in [(&rules.connect, AccessNet::ConnectTcp), (&rules.listen, AccessNet::BindTcp)] {
            for port in ports.iter().flatten() {
                made = made.add_rule(NetPort::new(*port, right))?;
            }
        }
        made.restrict_self()
    };
    kept().map(drop).map_err(refused)?;
    // After that it may gain nothing by what it runs (`no_new_privs`), so what it gives up is gone for good.
    give_up(AROUND).map_err(|error| format!("restrict it: it cannot give up rights of root: {error}"))
}

fn give_up(lost: CapabilitySet) -> std::io::Result<()> {
    let CapabilitySets { effective, permitted, inheritable } = capabilities(None)?;
    let [effective, permitted, inheritable] = [effective, permitted, inheritable].map(|had| had.difference(lost));
    Ok(set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?)
}

type Opened = Vec<(PathFd, BitFlags<AccessFs>)>;

/// Opens what rules are about, each with the rights that its kind of file can have.
fn open(paths: &[PathBuf], rights: BitFlags<AccessFs>, optional: &[PathBuf]) -> Result<Opened, String> {
    let mut opened = Vec::new();
    for path in paths {
        let found = PathFd::new(path).map_err(|error| error.to_string()).and_then(|fd| {
            let is_dir = path.metadata().map_err(|error| error.to_string())?.is_dir();
            Ok((fd, is_dir))
        });
        match found {
            Ok((fd, true)) => opened.push((fd, rights)),
            Ok((fd, false)) => opened.push((fd, rights & AccessFs::from_file(ABI_ASKED))),
            Err(_) if optional.contains(path) => {}
            Err(error) => {
                let path = path.display();
                return Err(format!(
                    "restrict it: {path} cannot be opened ({error}); hint: sandbox.read and .write name it"
                ));
            }
        }
    }
    Ok(opened)
}

/// What the kernel of this machine can keep, a line for each kind of right, for people.
pub fn report() -> Vec<String> {
    let asked = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let holds = |made: Result<Ruleset, RulesetError>| made.and_then(Ruleset::create).is_ok();
    let files = |abi| holds(asked().handle_access(AccessFs::from_all(abi)));
    let kinds = [
        ("files: reading, running, writing, making, removing", 1, files(ABI::V1)),
        ("files: moving between folders", 2, files(ABI::V2)),
        ("files: cutting", 3, files(ABI::V3)),
        ("TCP: connecting and listening by port", 4, holds(asked().handle_access(AccessNet::from_all(ABI::V4)))),
        ("devices: ioctl", 5, files(ABI::V5)),
        ("signals and abstract sockets", 6, holds(asked().scope(Scope::from_all(ABI::V6)))),
    ];
    let newest = kinds.iter().filter(|(_, _, holds)| *holds).map(|(_, abi, _)| abi).max();
    let first = match newest {
        None => "sandbox: this kernel has no Landlock, or it is switched off: only servers with best_effort = true or without a \
                 sandbox are started; hint: boot with lsm=landlock,..."
            .to_owned(),
        Some(6) => "sandbox: this kernel keeps all that the profiles ask for (Landlock, interface 6 or newer)".to_owned(),
        Some(abi) => format!(
            "sandbox: this kernel keeps a part of what the profiles ask for (Landlock, interface {abi} of 6): only servers with \
             best_effort = true or without a sandbox are started; hint: Linux 6.12 or newer"
        ),
    };
    let line = |(what, abi, holds): &(&str, i32, bool)| {
        format!("  {what} (interface {abi}): {}", if *holds { "kept" } else { "not kept" })
    };
    std::iter::once(first).chain(kinds.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(profile: Profile) -> Sandbox {
        Sandbox { profile, read: vec!["/data".into()], write: vec!["/data/out".into()], ..Sandbox::default() }
    }

    #[test]
    fn a_profile_allows_what_it_says_and_nothing_of_people() {
        let program = Path::new("/srv/bin/program");
        assert_eq!(rules(&sandbox(Profile::None), program), None);
        let confined = rules(&sandbox(Profile::Confined), program).unwrap();
        assert!(confined.read.contains(&"/data".into()) && confined.read.contains(&program.into()));
        assert!(!confined.optional.contains(&"/data".into()), "a folder that is named must be there");
        assert_eq!((&confined.connect, &confined.listen), (&Some(vec![]), &Some(vec![])));
        for of_people in ["/", "/etc", "/home", "/root", "/proc", "/var", "/srv", "/run", "/tmp"] {
            assert!(!confined.read.contains(&of_people.into()), "{of_people}");
        }
        assert!(confined.write.iter().all(|path| path.starts_with("/data/out") || path.starts_with("/dev")));
    }

    #[test]
    fn read_only_leaves_the_network_alone_unless_ports_are_named() {
        let mut sandbox = Sandbox { profile: Profile::ReadOnly, ..Sandbox::default() };
        let program = Path::new("/srv/bin/program");
        let read_only = rules(&sandbox, program).unwrap();
        assert_eq!((read_only.connect, read_only.listen), (None, None));
        assert_eq!((read_only.read, read_only.write), (vec!["/".into()], vec!["/dev/null".into(), "/dev/full".into()]));
        sandbox.connect = Some(vec![443]);
        assert_eq!(rules(&sandbox, program).unwrap().connect, Some(vec![443]));
    }
}
