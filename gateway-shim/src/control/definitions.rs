//! Tools in quarantine over the control socket: asks the catalog, which decides. What must hold: whoever accepts one is known by
//! the account that the system says, or by the name that they give, and why stands beside it in the record.

use bytes::Bytes;
use custody::wire;
use tonic::Status;

use super::access::reason;
use crate::catalog::{Catalog, NotAccepted};

fn there(catalog: Option<&Catalog>) -> Result<&Catalog, Status> {
    let hint = "hint: a shim that runs `serve` has one";
    catalog.ok_or_else(|| Status::failed_precondition(format!("find a catalog of tools: this shim has none; {hint}")))
}

fn shown(server: &str, tool: &str, before: Option<[u8; 32]>, after: Option<[u8; 32]>) -> wire::QuarantinedTool {
    let digest = |digest: Option<[u8; 32]>| digest.map(|digest| Bytes::copy_from_slice(&digest)).unwrap_or_default();
    wire::QuarantinedTool {
        server: server.to_owned(),
        tool: tool.to_owned(),
        before: digest(before),
        after: digest(after),
    }
}

/// What is in quarantine.
pub(super) fn quarantined(catalog: Option<&Catalog>) -> Result<wire::ListQuarantinedResponse, Status> {
    let pins = there(catalog)?.pins();
    let tools = pins.quarantined().map(|(server, tool, before, after)| shown(server, tool, before, after));
    Ok(wire::ListQuarantinedResponse { tools: tools.collect() })
}

/// Lets a tool out of it.
pub(super) async fn accept(
    catalog: Option<&Catalog>,
    uid: Option<u32>,
    asked: wire::AcceptToolRequest,
) -> Result<wire::QuarantinedTool, Status> {
    let (catalog, why) = (there(catalog)?, reason(asked.why, uid)?);
    let looked_at = match asked.digest.is_empty() {
        true => None,
        false => Some(<[u8; 32]>::try_from(asked.digest.as_ref()).map_err(|_| {
            Status::invalid_argument("accept the tool: its digest has not 32 bytes; hint: 64 hex digits")
        })?),
    };
    let accepted = catalog.accept(&asked.server, &asked.tool, looked_at, &why).await.map_err(|why| {
        let text = format!("accept the tool: {why}");
        match why {
            NotAccepted::NotQuarantined | NotAccepted::Another => Status::failed_precondition(text),
            NotAccepted::Unrecordable => Status::invalid_argument(text),
            NotAccepted::Unobserved(_) => Status::unavailable(text),
            NotAccepted::Unfinished(_) => Status::aborted(text),
        }
    })?;
    Ok(shown(&asked.server, accepted.tool(), accepted.before, accepted.after))
}
