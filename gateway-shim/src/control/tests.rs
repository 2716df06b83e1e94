//! Promises of the control socket: whose it is, that there is one, and that it says what is.

use std::os::unix::fs::PermissionsExt as _;

use custody::wire::{self, Decision, Outcome, Phase, control_client::ControlClient, record::Kind};
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::cookie::Shown;
use crate::testing::{
    TempDir,
    server::{Server, Trick},
    within,
};

/// A configuration whose folders are in this one.
pub(crate) fn config(dir: &TempDir) -> Config {
    let text = r#"
        [gateway]
        origin = "log.example"
        workspace = "01010101010101010101010101010101"
        id = "09090909090909090909090909090909"
        key = "gateway.key"
        tls_key = "tls.key"
        enrolment = "enrolment.json"
        [ledger]
        endpoint = "https://localhost:7443"
        [spool]
        dir = "spool"
        [fork]
        dir = "forks"
    "#;
    let mut config = Config::parse(text).unwrap();
    config.spool.dir = dir.path().join("state");
    config
}

/// Somebody who can read the shim's folder.
async fn client(config: &Config) -> ControlClient<InterceptedService<Channel, Shown>> {
    let cookie = Shown::read(&config.control_cookie()).unwrap();
    ControlClient::with_interceptor(connection(config).await, cookie)
}

async fn connection(config: &Config) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix:{}", config.control_socket().display())).unwrap();
    endpoint.connect().await.unwrap()
}

async fn status(config: &Config) -> ShimStatusResponse {
    let mut client = client(config).await;
    client.status(ShimStatusRequest {}).await.unwrap().into_inner()
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_there_is_one_for_each_folder() {
    let dir = TempDir::new();
    let config = config(&dir);
    let socket = Socket::bind(&config).unwrap();
    let mode = std::fs::metadata(config.control_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let other = Socket::bind(&config).map(drop).unwrap_err();
    assert!(other.contains("another shim runs with it; hint: gateway-shim status"), "{other}");
    drop(socket);
    assert!(!config.control_socket().exists(), "whoever comes now would find nobody");
    // What a shim leaves that was killed: the socket, without the lock.
    drop(std::os::unix::net::UnixListener::bind(config.control_socket()).unwrap());
    Socket::bind(&config).unwrap();
}

/// A server in its sandbox can open the socket, and read no file beside it.
#[tokio::test]
async fn whoever_shows_no_cookie_of_this_start_is_told_nothing_and_changes_nothing() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let (gateway, config) = (server.gateway(&dir).await, config(&dir));
    let bound = || Socket::bind(&config).unwrap();
    let controlled = || Controlled::new(gateway.clone(), config.clone(), Servers::default(), None, None);
    let serving = tokio::spawn(bound().serve(controlled()));
    let before = Shown::read(&config.control_cookie()).unwrap();
    status(&config).await;
    serving.abort();
    drop(serving.await);
    assert!(!config.control_cookie().exists(), "it is of no use any more");
    let serving = tokio::spawn(bound().serve(controlled()));
    // What the start before was shown, and nothing at all.
    let mut stale = ControlClient::with_interceptor(connection(&config).await, before);
    let mut nobody = ControlClient::new(connection(&config).await);
    let unauthenticated = |why: Status| {
        assert_eq!(why.code(), tonic::Code::Unauthenticated, "{why}");
        assert!(why.message().contains("hint: "), "{why}");
    };
    unauthenticated(stale.status(ShimStatusRequest {}).await.map(drop).unwrap_err());
    unauthenticated(nobody.status(ShimStatusRequest {}).await.map(drop).unwrap_err());
    unauthenticated(nobody.list_processes(ListProcessesRequest {}).await.map(drop).unwrap_err());
    unauthenticated(nobody.change_processes(ChangeProcessesRequest::default()).await.map(drop).unwrap_err());
    unauthenticated(nobody.plan_access(PlanAccessRequest::default()).await.map(drop).unwrap_err());
    unauthenticated(nobody.apply_access(ApplyAccessRequest::default()).await.map(drop).unwrap_err());
    unauthenticated(nobody.change_access(ChangeAccessRequest::default()).await.map(drop).unwrap_err());
    unauthenticated(nobody.members(ShimMembersRequest {}).await.map(drop).unwrap_err());
    status(&config).await;
    serving.abort();
}

#[tokio::test]
async fn status_says_what_was_recorded_shipped_and_heard_of_the_ledger() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let (gateway, config) = (server.gateway(&dir).await, config(&dir));
    let serving = Socket::bind(&config).unwrap().serve(Controlled::new(
        gateway.clone(),
        config.clone(),
        Servers::default(),
        None,
        None,
    ));
    let serving = tokio::spawn(serving);
    let call = |outcome: Outcome, decision: Decision| wire::Call {
        phase: Phase::Complete as i32,
        mode: wire::Mode::Strict as i32,
        server: "files".into(),
        outcome: outcome as i32,
        decision: decision as i32,
        rule: "shim/no-token".into(),
        ..Default::default()
    };
    let name = gateway.record(Kind::Call(call(Outcome::Ok, Decision::Allowed))).await.unwrap();
    gateway.record(Kind::Call(call(Outcome::Unauthenticated, Decision::Denied))).await.unwrap();
    let running = gateway.begin(call(Outcome::Ok, Decision::Allowed)).await.unwrap();
    let seen = within(async {
        loop {
            let seen = status(&config).await;
            if seen.ledger.as_ref().unwrap().receipt_at > 0 && seen.spool.as_ref().unwrap().unshipped == 0 {
                break seen;
            }
        }
    });
    let seen = seen.await;
    let (spool, ledger) = (seen.spool.unwrap(), seen.ledger.unwrap());
    assert_eq!(spool.epoch, bytes::Bytes::from(name.epoch));
    assert_eq!((spool.running, spool.next_record), (1, name.number + 2));
    assert!(spool.bytes > 0 && spool.bytes <= spool.bytes_max, "{spool:?}");
    assert!(ledger.connected && ledger.why.is_empty() && ledger.leaves > 0, "{ledger:?}");
    let files = seen.servers.iter().find(|server| server.name == "files").unwrap();
    let counts: Vec<_> = files.calls.iter().map(|of| (of.decision(), of.outcome(), of.count)).collect();
    assert_eq!(counts, [(Decision::Allowed, Outcome::Ok, 1), (Decision::Denied, Outcome::Unauthenticated, 1)]);
    server.kill();
    // The next batch breaks the stream.
    server.tricks([Trick::Vanish]);
    gateway.record(Kind::Call(call(Outcome::Ok, Decision::Allowed))).await.unwrap();
    let ledger = within(async {
        loop {
            let ledger = status(&config).await.ledger.unwrap();
            if !ledger.connected {
                break ledger;
            }
        }
    });
    assert!(ledger.await.why.contains("hint: "), "what to do about it");
    running.finish(crate::writer::Ending::of(Outcome::Ok)).await.unwrap();
    assert_eq!(status(&config).await.spool.unwrap().running, 0);
    serving.abort();
}

#[tokio::test]
async fn a_change_over_the_socket_is_on_record_with_the_account_that_asked() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let (gateway, config) = (server.gateway(&dir).await, config(&dir));
    let file = dir.path().join("access.toml");
    durable::replace(&file, b"version = 1\n").unwrap();
    let paths = crate::access::Paths { dir: config.control_dir().to_owned(), workspace: file, organisation: None };
    let engine = Engine::open(paths, gateway.clone()).await.unwrap();
    let controlled = Controlled::new(gateway.clone(), config.clone(), Servers::default(), Some(engine), None);
    let serving = tokio::spawn(Socket::bind(&config).unwrap().serve(controlled));
    let mut client = client(&config).await;
    let why = wire::AccessWhy { actor: String::new(), reason: "joined".into(), ticket: "T-1".into() };
    let owner = wire::MemberAdd { member: vec![1; 16].into(), groups: vec!["all".into()], ..Default::default() };
    let added = client.change_access(add(&why, owner)).await.unwrap().into_inner();
    let [token] = added.tokens.as_slice() else { panic!("one token") };
    assert!(token.starts_with("cst_"));
    let members = client.members(ShimMembersRequest {}).await.unwrap().into_inner();
    assert_eq!((members.members.len(), members.members[0].tokens.len()), (1, 1));
    let seen = status(&config).await.access.unwrap();
    assert_eq!((seen.members, seen.tokens, seen.differs.as_str()), (1, 1, ""), "the file follows what a verb did");
    for (add, says) in [
        (wire::MemberAdd { member: vec![1; 16].into(), ..Default::default() }, "already"),
        (wire::MemberAdd::default(), "hint: --person FILE"),
        (wire::MemberAdd { member: vec![2; 3].into(), ..Default::default() }, "16 bytes"),
    ] {
        let refused = client.change_access(self::add(&why, add)).await.unwrap_err();
        assert!(refused.message().contains(says) && refused.message().contains("hint: "), "{refused}");
    }
    for named in ["uid:0", "start", "identity-provider", "shim/own", "ab".repeat(16).as_str()] {
        let why = wire::AccessWhy { actor: named.into(), ..why.clone() };
        let by = wire::MemberAdd { member: vec![3; 16].into(), ..Default::default() };
        let refused = client.change_access(add(&why, by)).await.unwrap_err();
        assert!(refused.message().contains("--actor") && refused.message().contains("hint: "), "{refused}");
    }
    gateway.drain().await.unwrap();
    let records = server.shared.ledger.lock().unwrap().records();
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(dir.path()).unwrap());
    let mut changes = 0;
    for bytes in &records {
        assert!(
            !bytes.windows(64).any(|part| part == token.rsplit('_').next().unwrap().as_bytes()),
            "a token is on record"
        );
        if let Some(Kind::AccessChange(change)) = custody::record::decode(bytes).unwrap().kind
            && change.reason == "joined"
        {
            let actor = wire::access_change::Actor::ActorSystem(format!("uid:{uid}"));
            assert_eq!((change.actor, change.ticket.as_str(), change.actor_account), (Some(actor), "T-1", Some(uid)));
            changes += 1;
        }
    }
    assert!(changes >= 3, "the member, its group and its token: {changes}");
    serving.abort();
}

/// The ledger's directory follows the groups; an addition that the policy refuses changes nothing there; and whoever answers for
/// a service is named when they are revoked.
#[tokio::test]
async fn the_directory_is_told_who_is_in_which_groups() {
    use wire::change_access_request::Verb;

    let (server, dir) = (Server::start().await, TempDir::new());
    server.shared.script.lock().unwrap().enrolments = (0..40).map(|_| Some(Ok([5; 16]))).collect();
    let (gateway, config) = (server.gateway(&dir).await, config(&dir));
    let file = dir.path().join("access.toml");
    durable::replace(&file, b"version = 1\n").unwrap();
    let paths = crate::access::Paths { dir: config.control_dir().to_owned(), workspace: file, organisation: None };
    let engine = Engine::open(paths, gateway.clone()).await.unwrap();
    let do_it = async |verb| {
        let why = wire::AccessWhy { reason: "test".into(), ..Default::default() };
        let asked = ChangeAccessRequest { why: Some(why), verb: Some(verb) };
        access::change(Some(&engine), &gateway, Some(1), asked).await
    };
    let person = |name: &str, groups: &[&str]| {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Verb::Add(wire::MemberAdd {
            name: name.into(),
            address: "ada@example.com".into(),
            groups,
            ..Default::default()
        })
    };
    let asked = || server.shared.script.lock().unwrap().enrolled.clone();
    // Whatever was said last of the groups.
    let told = async |groups: &[&str]| {
        within(async {
            while asked().iter().rfind(|asked| !asked.member.is_empty()).is_none_or(|asked| asked.groups != *groups) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    do_it(person("Ada", &["dev"])).await.unwrap();
    let first: Vec<_> = asked().into_iter().take(2).map(|asked| (asked.id_alone, asked.name)).collect();
    assert_eq!(first, [(true, String::new()), (false, "Ada".to_owned())]);
    told(&["dev"]).await;
    let of = |group: &str| wire::GroupOf { member: vec![5; 16].into(), group: group.into() };
    do_it(Verb::Join(of("prod"))).await.unwrap();
    told(&["dev", "prod"]).await;
    do_it(Verb::Leave(of("dev"))).await.unwrap();
    told(&["prod"]).await;
    assert!(do_it(person("Somebody Else", &["zzz"])).await.unwrap_err().message().contains("already"));
    assert!(asked().iter().all(|asked| asked.name != "Somebody Else" && !asked.groups.contains(&"zzz".to_owned())));
    let service = wire::MemberAdd { owner: vec![5; 16].into(), groups: vec!["bots".into()], ..Default::default() };
    do_it(Verb::Add(service)).await.unwrap();
    let revoked = do_it(Verb::RevokeMember(vec![5; 16].into())).await.unwrap();
    assert!(revoked.warnings[0].contains("answers for the service") && revoked.warnings[0].contains("hint: "));
    told(&[]).await;
    assert!(asked().iter().all(|asked| !asked.groups.contains(&"bots".to_owned())), "a service is no person");
    gateway.drain().await.unwrap();
}

fn add(why: &wire::AccessWhy, add: wire::MemberAdd) -> ChangeAccessRequest {
    ChangeAccessRequest { why: Some(why.clone()), verb: Some(wire::change_access_request::Verb::Add(add)) }
}

#[tokio::test]
async fn a_tool_leaves_quarantine_by_whoever_asked_and_for_a_reason() {
    use crate::{
        access::policy::OnChange,
        catalog::{Policy, list},
    };
    let (server, dir) = (Server::start().await, TempDir::new());
    let (gateway, config) = (server.gateway(&dir).await, config(&dir));
    let catalog = Catalog::open(dir.path().join("pins"), gateway.clone()).unwrap();
    let policy = Policy { on_change: OnChange::Quarantine, check_arguments: false };
    for description in ["sends", "sends, and to me as well"] {
        let tools = format!(r#"{{"tools":[{{"name":"send","description":"{description}"}}]}}"#);
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{tools}}}"#);
        let Ok(list::Answer::List(list)) = list::read(list::Kind::Tools, &message.into()) else { panic!() };
        catalog.observe("mail", policy, list::Kind::Tools, &[Arc::from(list)], Some([0; 8])).await.unwrap();
    }
    let controlled = Controlled::new(gateway.clone(), config.clone(), Servers::default(), None, Some(catalog.clone()));
    let serving = tokio::spawn(Socket::bind(&config).unwrap().serve(controlled));
    let mut client = client(&config).await;
    let listed = client.list_quarantined(ListQuarantinedRequest {}).await.unwrap().into_inner().tools;
    let [tool] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((tool.server.as_str(), tool.tool.as_str()), ("mail", "send"));
    let accept = |reason: &str, tool: &str, digest: &[u8]| AcceptToolRequest {
        why: Some(wire::AccessWhy { actor: String::new(), reason: reason.into(), ticket: "SEC-1".into() }),
        server: "mail".into(),
        tool: tool.into(),
        digest: digest.to_vec().into(),
    };
    for (asked, says) in [
        (accept("reviewed", "other", &[]), "not in quarantine"),
        (accept("reviewed", "send", &[7; 32]), "another definition"),
        (accept("reviewed", "send", &[7]), "32 bytes"),
        (accept("two words", "send", &[]), "is no token"),
    ] {
        let refused = client.accept_tool(asked).await.unwrap_err();
        assert!(refused.message().contains(says) && refused.message().contains("hint: "), "{refused}");
    }
    let accepted = client.accept_tool(accept("reviewed", "send", &tool.after)).await.unwrap().into_inner();
    assert_eq!(accepted.after, tool.after);
    assert!(client.list_quarantined(ListQuarantinedRequest {}).await.unwrap().into_inner().tools.is_empty());
    assert!(catalog.check_call("mail", policy, "send", b"{}").unwrap().is_some());
    gateway.drain().await.unwrap();
    let records = server.shared.ledger.lock().unwrap().records();
    let last = records.iter().rev().find_map(|bytes| match custody::record::decode(bytes).unwrap().kind {
        Some(Kind::ToolDefinition(definition)) => Some(definition),
        _ => None,
    });
    let (last, uid) = (last.unwrap(), std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(dir.path()).unwrap()));
    assert_eq!(last.action(), wire::DefinitionAction::Accepted);
    assert_eq!(last.actor, Some(wire::tool_definition::Actor::ActorSystem(format!("uid:{uid}"))));
    assert_eq!((last.reason.as_str(), last.ticket.as_str()), ("reviewed", "SEC-1"));
    serving.abort();
}
