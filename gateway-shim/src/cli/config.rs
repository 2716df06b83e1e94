//! `gateway-shim config`: the configuration file and the files that it names. Nothing else is asked: `check` does that.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::Subcommand;

use super::{At, Done, EXIT_FAILED, Failed, say};
use crate::{
    config::{Config, Profile, TEMPLATE},
    gateway, serve,
    server::sandbox,
};

#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Prints one with every key: its unit, default, bounds and reason.
    Template,
    /// Says all that is wrong with it and with the files that it names, and the next move; asks nobody else.
    Check(At),
}

pub(super) fn run(verb: &ConfigVerb) -> Done {
    match verb {
        ConfigVerb::Template => {
            let printed = std::io::stdout().write_all(TEMPLATE.as_bytes());
            printed.map_err(|error| Failed::of(EXIT_FAILED, &error))?;
        }
        ConfigVerb::Check(at) => {
            let config = at.load()?;
            files(&config)?;
            for warning in config.warnings().into_iter().chain(exposed(&config)) {
                say(&format!("warning: {warning}"));
            }
            say("the configuration can be used");
        }
    }
    Ok(0)
}

/// Looks at every file that a start reads.
///
/// # Errors
/// All that is wrong with them.
pub fn files(config: &Config) -> Result<(), Failed> {
    gateway::check(config)?;
    Ok(serve::check(config)?)
}

/// What is secret of this shim and a confined server may read all the same, because its sandbox shows that place.
pub(super) fn exposed(config: &Config) -> Vec<String> {
    let mut secrets = vec![
        ("gateway.key".to_owned(), config.gateway.key.clone()),
        ("gateway.tls_key".to_owned(), config.gateway.tls_key.clone()),
        ("spool.dir".to_owned(), config.spool.dir.clone()),
    ];
    if let Some(serve) = &config.serve {
        secrets.push(("serve.dir".to_owned(), serve.dir.clone()));
        secrets.extend(serve.key.clone().map(|key| ("serve.key".to_owned(), key)));
    }
    for (name, server) in &config.servers {
        let credential = server.credential.as_ref().and_then(|credential| credential.file.clone());
        secrets.extend(credential.map(|file| (format!("servers.{name}.credential.file"), file)));
        secrets.extend(server.credentials.clone().map(|dir| (format!("servers.{name}.credentials"), dir)));
        secrets.extend(server.environment_file.clone().map(|file| (format!("servers.{name}.environment_file"), file)));
    }
    let mut warnings = Vec::new();
    for (name, server) in &config.servers {
        let process = server.process();
        let program = Path::new(server.command.first().map_or("", String::as_str));
        let of_profile = Some(&process.sandbox).filter(|sandbox| sandbox.profile == Profile::Confined);
        let Some(rules) = of_profile.and_then(|sandbox| sandbox::rules(sandbox, program)) else { continue };
        // What it is given it knows anyway.
        let own = format!("servers.{name}.environment_file");
        for (key, path) in secrets.iter().filter(|(key, _)| *key != own) {
            let place = real(path);
            let shows = |shown: &&PathBuf| place.starts_with(real(shown)) || real(shown).starts_with(&place);
            let shown = rules.read.iter().chain(&rules.write).find(shows);
            if let Some(shown) = shown {
                warnings.push(format!(
                    "servers.{name} is confined, and may read of {} ({key}), because its sandbox shows {}; hint: move the one \
                     elsewhere, or name a narrower folder in servers.{name}.sandbox; /usr, /opt and /lib are shown to all",
                    path.display(),
                    shown.display()
                ));
            }
        }
    }
    warnings
}

/// Without links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            return real.join(rest);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn secrets_below_what_a_confined_server_is_shown_are_named() {
        let dir = TempDir::new();
        let folder = dir.path().join("shim");
        std::fs::create_dir(&folder).unwrap();
        // By another name: rules are about files, and not about their names.
        std::os::unix::fs::symlink(&folder, dir.path().join("link")).unwrap();
        let with = |sandbox: &str| {
            let servers = format!(
                "[servers.one]\ncommand = [\"sh\"]\nenvironment_file = \"one.env\"\n[servers.one.sandbox]\n{sandbox}\n\
                 [servers.two]\nurl = \"http://127.0.0.1:1/mcp\"\n[servers.two.credential]\nfile = \"two.secret\"\n"
            );
            let text = super::super::init::configuration(&super::super::init::Facts::default(), &servers);
            let path = folder.join("shim.toml");
            crate::durable::replace(&path, text.as_bytes()).unwrap();
            exposed(&Config::read(&path).unwrap())
        };
        assert_eq!(with("profile = \"confined\"\nread = [\"programs\"]\nwrite = [\"data\"]"), Vec::<String>::new());
        assert_eq!(with("profile = \"read-only\""), Vec::<String>::new(), "it says itself that it reads everything");
        let all = with("profile = \"confined\"\nread = [\"../link\"]");
        for key in ["(gateway.key)", "(gateway.tls_key)", "(spool.dir)", "(serve.dir)", "(servers.two.credential.file)"]
        {
            assert!(all.iter().any(|warning| warning.contains(key) && warning.contains("hint: ")), "{key}: {all:?}");
        }
        assert!(!all.iter().any(|warning| warning.contains("one.env")), "{all:?}");
        let one = with("profile = \"confined\"\nwrite = [\"two.secret\"]");
        assert!(one.len() == 1 && one[0].contains("two.secret"), "{one:?}");
    }

    #[test]
    fn what_every_server_is_shown_holds_no_secret_unnoticed() {
        let servers = "[servers.one]\ncommand = [\"sh\"]\n[servers.one.sandbox]\nprofile = \"confined\"\n";
        let text = super::super::init::configuration(&super::super::init::Facts::default(), servers);
        let mut config = Config::parse(&text).unwrap();
        config.gateway.key = "/opt/custody/gateway.key".into();
        let found = exposed(&config);
        assert!(found.iter().any(|warning| warning.contains("/opt/custody/gateway.key")), "{found:?}");
    }
}
