//! Enrolment of gateways: from a gateway's request file to the answer file that it starts with.
//!
//! What must hold: the request proves possession of the key that is enrolled; enrolling the same request again makes no
//! second statement, so an enrolment that was signed offline, or cut short, is finished by the same command.

use std::path::PathBuf;

use clap::Subcommand;
use custody::{
    id::{GatewayId, KeyId, WorkspaceId, unhex},
    key::{Context, PublicKey},
    policy::Policy,
    statement::possession,
    wire::{self, Role, statement::Action},
};
use serde::{Deserialize, Serialize};

use super::{
    At, Done, Fault,
    admin::Ledger,
    chain::replay,
    check_token, is_there,
    output::say,
    read_input, read_input_or,
    sign::{NAME_BYTES_MAX, Outcome, Signing},
    write_output,
};

#[derive(Debug, Subcommand)]
pub(super) enum GatewayCommand {
    /// Enrol a gateway's key and give it a certificate.
    Enrol {
        #[command(flatten)]
        at: At,
        /// The gateway's request, as the gateway made it.
        request: PathBuf,
        /// Name for people: at most 64 characters of [A-Za-z0-9_./:@+-]. The request's own if none is given.
        #[arg(long)]
        name: Option<String>,
        /// File for the answer, which goes back to the gateway. It holds no secret.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        signing: Signing,
    },
}

/// What a gateway asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    version: u32,
    origin: String,
    workspace: String,
    gateway: String,
    #[serde(default)]
    name: String,
    public_key: String,
    possession: String,
    tls_request: String,
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    version: u32,
    /// Leaf first, then the authority.
    certificate: String,
    /// The ledger's authority, to know the ledger by.
    authority: String,
    root_public_key: String,
    root_successor_hash: String,
    era: u32,
}

/// A request whose signature was checked.
struct Asked {
    workspace: WorkspaceId,
    gateway: GatewayId,
    key: PublicKey,
    enrol: wire::Enrol,
    tls_request: String,
}

pub(super) async fn run(command: GatewayCommand) -> Done {
    let GatewayCommand::Enrol { at, request, name, out, signing } = command;
    let bytes = read_input_or(&request, "the gateway makes it, with `gateway-shim request`; is the path right?")?;
    let config = at.load()?;
    let asked = parse(&bytes, &config.origin, name.as_deref())?;
    check_token("a gateway's name", &asked.enrol.name, NAME_BYTES_MAX, true)?;
    // All that can be wrong on this machine is told before the ledger is asked for anything.
    signing.check()?;
    if out.exists() {
        return Err(is_there(&out));
    }
    let mut ledger = Ledger::connect(config).await?;
    if enrolled(&mut ledger, &asked).await? {
        say("this key is enrolled already; only the certificate is made");
    } else {
        let action = Action::Enrol(asked.enrol.clone());
        if signing.say(&mut ledger, Some(asked.workspace), action).await? == Outcome::Requested {
            say("and then this command again, which makes the answer");
            return Ok(());
        }
    }
    let certificate = ledger.certificate(&asked.tls_request, Some((asked.workspace, asked.gateway))).await?;
    let answer = answer(&ledger, certificate)?;
    let mut text = serde_json::to_vec_pretty(&answer).map_err(|why| Fault::failure(why.to_string()))?;
    text.push(b'\n');
    write_output(&out, &text)?;
    say(&format!("gateway {} may write into workspace {}", asked.gateway, asked.workspace));
    say(&format!("give {} to the gateway", out.display()));
    Ok(())
}

fn parse(bytes: &[u8], origin: &str, name: Option<&str>) -> Result<Asked, Fault> {
    let bad = |why: &str| {
        Fault::failure(format!(
            "the enrolment request {why}\nhint: have the gateway make a new one, with `gateway-shim request`"
        ))
    };
    let request: Request = serde_json::from_slice(bytes).map_err(|why| bad(&format!("is not in form: {why}")))?;
    if request.version != 1 {
        return Err(bad(&format!("has version {}, and this program knows 1", request.version)));
    }
    if request.origin != origin {
        return Err(bad(&format!("is for the log {}, and this is {origin}", request.origin)));
    }
    let workspace = WorkspaceId::from_hex(&request.workspace).ok_or_else(|| bad("names no workspace id"))?;
    let gateway = GatewayId::from_hex(&request.gateway).ok_or_else(|| bad("names no gateway id"))?;
    let key = unhex(&request.public_key).and_then(|bytes| PublicKey::new(&bytes));
    let key = key.ok_or_else(|| bad("brings no usable Ed25519 key"))?;
    let proof = unhex(&request.possession).unwrap_or_default();
    let message = possession(origin, Some(workspace), Role::Gateway, key, Some(gateway));
    if !key.verifies(Context::Possession, &message, &proof) {
        return Err(bad("does not prove that the gateway holds its key"));
    }
    let enrol = wire::Enrol {
        role: Role::Gateway as i32,
        public_key: key.to_bytes().to_vec().into(),
        gateway: Some(gateway.into()),
        name: name.map_or(request.name, str::to_owned),
        possession: Some(proof.into()),
    };
    Ok(Asked { workspace, gateway, key, enrol, tls_request: request.tls_request })
}

/// Whether this very key is this gateway's already, and in force.
async fn enrolled(ledger: &mut Ledger, asked: &Asked) -> Result<bool, Fault> {
    let chain = replay(ledger, Some(asked.workspace)).await?;
    let id: KeyId = asked.key.id(Role::Gateway);
    match chain.key(&id) {
        None => Ok(false),
        Some(state) if state.gateway == Some(asked.gateway) && !state.revoked && !state.retired => Ok(true),
        Some(_) => Err(Fault::failure(format!(
            "key {id} was enrolled before and is not to be used again\nhint: have the gateway make a new key"
        ))),
    }
}

fn answer(ledger: &Ledger, certificate: String) -> Result<Answer, Fault> {
    let bytes = read_input(&ledger.config.paths.policy)?;
    let policy = Policy::parse(&bytes).map_err(|why| Fault::failure(why.to_string()))?;
    // The gateway replays the chain from its beginning, so it starts with the first root.
    let root = policy.roots.iter().min_by_key(|root| root.era);
    let root = root.ok_or_else(|| Fault::failure("the audit policy names no root key"))?;
    let authority = last_certificate(&certificate);
    let authority =
        authority.ok_or_else(|| Fault::failure("the ledger's answer has no certificate of its authority"))?;
    Ok(Answer {
        version: 1,
        authority: authority.to_owned(),
        certificate,
        root_public_key: root.public_key.clone(),
        root_successor_hash: root.successor_hash.clone(),
        era: root.era,
    })
}

fn last_certificate(chain: &str) -> Option<&str> {
    chain.get(chain.rfind("-----BEGIN CERTIFICATE-----")?..)
}

#[cfg(test)]
mod tests {
    use custody::id::hex;

    use super::*;
    use crate::keys;

    const ORIGIN: &str = "example.org/custody";

    /// A request as a gateway makes it.
    fn request_json(
        origin: &str,
        workspace: WorkspaceId,
        gateway: GatewayId,
        key: &ed25519_dalek::SigningKey,
        tls_request: &str,
    ) -> String {
        let public = custody::key::public(key);
        let message = possession(origin, Some(workspace), Role::Gateway, public, Some(gateway));
        let request = Request {
            version: 1,
            origin: origin.to_owned(),
            workspace: workspace.to_string(),
            gateway: gateway.to_string(),
            name: String::new(),
            public_key: hex(&public.to_bytes()),
            possession: hex(&custody::key::sign(key, Context::Possession, &message)),
            tls_request: tls_request.to_owned(),
        };
        serde_json::to_string_pretty(&request).unwrap()
    }

    fn request() -> serde_json::Value {
        let text = request_json(ORIGIN, WorkspaceId([1; 16]), GatewayId([2; 16]), &keys::generate(), "PEM");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_request_is_taken_only_whole_and_proven() {
        let good = request();
        let asked = parse(good.to_string().as_bytes(), ORIGIN, Some("berlin")).unwrap();
        assert_eq!((asked.workspace, asked.gateway), (WorkspaceId([1; 16]), GatewayId([2; 16])));
        assert_eq!((asked.enrol.name.as_str(), asked.tls_request.as_str()), ("berlin", "PEM"));
        let other = request();
        for (key, value, word) in [
            ("version", serde_json::json!(2), "version 2"),
            ("origin", serde_json::json!("elsewhere"), "elsewhere"),
            ("workspace", serde_json::json!("03".repeat(16)), "prove"),
            ("gateway", serde_json::json!("03".repeat(16)), "prove"),
            ("gateway", serde_json::json!("xyz"), "no gateway id"),
            ("public_key", other["public_key"].clone(), "prove"),
            ("public_key", serde_json::json!("00".repeat(32)), "no usable"),
            ("possession", serde_json::json!(""), "prove"),
            ("more", serde_json::json!(1), "more"),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            let why = parse(bad.to_string().as_bytes(), ORIGIN, None).map(|_| ()).unwrap_err().text;
            assert!(why.contains(word) && why.contains("hint:"), "{key}: {why}");
        }
        assert!(parse(b"{", ORIGIN, None).is_err());
    }

    #[test]
    fn the_authority_is_the_last_of_the_chain() {
        let chain = "-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nB\n-----END CERTIFICATE-----\n";
        assert_eq!(last_certificate(chain), Some("-----BEGIN CERTIFICATE-----\nB\n-----END CERTIFICATE-----\n"));
        assert_eq!(last_certificate(""), None);
    }
}
