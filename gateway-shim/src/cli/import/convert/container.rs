//! Variables that a container is given in the command that starts it. Pure.

use super::super::secret::is_secret;
use crate::config::is_variable;

/// Whether the command starts one.
pub(super) fn is_one(command: &[String]) -> bool {
    let program = command.first().and_then(|program| program.rsplit(['/', '\\']).next()).unwrap_or_default();
    ["docker", "podman", "docker.exe", "podman.exe"].contains(&program)
}

/// The command without the values of secrets, and these with their names: `-e NAME` alone takes the value from the environment
/// of whoever starts the container.
pub(super) fn without_secrets(command: &[String]) -> (Vec<String>, Vec<(String, String)>) {
    if !is_one(command) {
        return (command.to_owned(), Vec::new());
    }
    let (mut words, mut moved, mut after) = (Vec::new(), Vec::new(), false);
    for word in command {
        let (option, pair) = match word {
            pair if after => ("", pair.as_str()),
            word => ["--env=", "-e"]
                .iter()
                .find_map(|option| Some((*option, word.strip_prefix(option)?)))
                .filter(|_| !word.starts_with("--e") || word.starts_with("--env="))
                .unwrap_or((word, "")),
        };
        after = !after && ["-e", "--env"].contains(&word.as_str());
        match pair.split_once('=').filter(|(name, value)| is_variable(name) && is_secret(name, value)) {
            Some((name, value)) => {
                words.push(format!("{option}{name}"));
                moved.push((name.to_owned(), value.to_owned()));
            }
            None => words.push(word.clone()),
        }
    }
    (words, moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_of_a_container_leaves_the_command_and_keeps_its_name() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let line = "docker run -i -e API_KEY=pw2 --env=DB_PASSWORD=pw3 -eSECRET=pw9 --env TOKEN=a=b -e LEVEL=info --entrypoint=x -e \
                    KEY mcp/foo:1.2";
        let (command, moved) = without_secrets(&words(line));
        let kept = "docker run -i -e API_KEY --env=DB_PASSWORD -eSECRET --env TOKEN -e LEVEL=info --entrypoint=x -e KEY mcp/foo:1.2";
        assert_eq!(command, words(kept));
        let moved: Vec<_> = moved.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(moved, [("API_KEY", "pw2"), ("DB_PASSWORD", "pw3"), ("SECRET", "pw9"), ("TOKEN", "a=b")]);
        let other = words("node -e TOKEN=x");
        assert_eq!(without_secrets(&other), (other, Vec::new()));
    }
}
