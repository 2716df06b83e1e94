//! `gateway-shim connect`: what goes into an MCP client's configuration, so that it reaches the servers through the shim. It never
//! holds a token: where the client can, it takes one from a variable or asks for it.

use clap::{Args, ValueEnum};

use super::{At, Done, EXIT_FAILED, Failed, output::print};
use crate::config::Config;

/// Stands where the member's token goes.
const TOKEN: &str = "CUSTODY_TOKEN";

#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The client.
    client: Client,
    #[command(flatten)]
    at: At,
    /// This server alone, under its own names of tools; without it all of them, each tool as `server__tool`.
    #[arg(long)]
    server: Option<String>,
    /// Host and port under which members reach the shim, if serve.listen does not say.
    #[arg(long)]
    host: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    ClaudeDesktop,
    ClaudeCode,
    Cursor,
    Vscode,
    Inspector,
    Python,
    Typescript,
}

pub(super) fn run(args: &ConnectArgs) -> Done {
    let url = url(&args.at.load()?, args.server.as_deref(), args.host.as_deref())?;
    print(&snippet(args.client, args.server.as_deref().unwrap_or("custody"), &url));
    Ok(0)
}

/// Where members reach the shim.
fn url(config: &Config, server: Option<&str>, host: Option<&str>) -> Result<String, Failed> {
    let serve = config.serve.as_ref().ok_or_else(|| Failed::missing("serve"))?;
    if let Some(server) = server.filter(|server| !config.servers.contains_key(*server)) {
        let known = config.servers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let text = format!("connect to {server:?}: the configuration has no such server; hint: one of {known}");
        return Err(Failed::new(EXIT_FAILED, text));
    }
    let scheme = if serve.certificate.is_some() { "https" } else { "http" };
    let known = serve.hosts.first().map(|host| format!("{host}:{}", serve.listen.port()));
    let host = match (host, known) {
        (Some(host), _) => host.to_owned(),
        (None, Some(known)) => known,
        (None, None) if serve.listen.ip().is_unspecified() => {
            let hint = "hint: --host HOST:PORT, or serve.hosts";
            return Err(Failed::new(
                EXIT_FAILED,
                format!("name the address: serve.listen is every one there is; {hint}"),
            ));
        }
        (None, None) => serve.listen.to_string(),
    };
    let path = server.map_or_else(String::new, |server| format!("/{server}"));
    Ok(format!("{scheme}://{host}/mcp{path}"))
}

fn snippet(client: Client, name: &str, url: &str) -> String {
    match client {
        Client::ClaudeDesktop => format!(
            "// claude_desktop_config.json. Claude Desktop starts programs alone, so a bridge goes between (npm: mcp-remote); pin its\n\
             // version. The token stands in this file: keep it to yourself (mode 0600).\n\
             {{\n  \"mcpServers\": {{\n    \"{name}\": {{\n      \"command\": \"npx\",\n      \"args\": [\"-y\", \"mcp-remote\", \"{url}\", \
             \"--header\", \"Authorization:${{{TOKEN}_HEADER}}\"],\n      \"env\": {{ \"{TOKEN}_HEADER\": \"Bearer <your token>\" }}\n    \
             }}\n  }}\n}}"
        ),
        Client::ClaudeCode => format!(
            "# In a shell, with the token in {TOKEN}; the file then names the variable, not the token:\n\
             claude mcp add --transport http --scope user {name} {url} --header 'Authorization: Bearer ${{{TOKEN}}}'\n\n\
             # Or in .mcp.json:\n{}",
            json(name, url, "mcpServers", &format!("${{{TOKEN}}}"), "\"type\": \"http\", ")
        ),
        Client::Cursor => format!(
            "// ~/.cursor/mcp.json, with the token in {TOKEN} of the environment that Cursor is started from:\n{}",
            json(name, url, "mcpServers", &format!("${{env:{TOKEN}}}"), "")
        ),
        Client::Vscode => format!(
            "// .vscode/mcp.json; VS Code asks for the token once and keeps it among its secrets:\n\
             {{\n  \"inputs\": [{{ \"type\": \"promptString\", \"id\": \"custody-token\", \"description\": \"Custody token\", \"password\": \
             true }}],\n  \"servers\": {{\n    \"{name}\": {{ \"type\": \"http\", \"url\": \"{url}\", \"headers\": {{ \
             \"Authorization\": \"Bearer ${{input:custody-token}}\" }} }}\n  }}\n}}"
        ),
        Client::Inspector => format!(
            "npx @modelcontextprotocol/inspector --cli {url} --transport http --method tools/list \\\n    --header \"Authorization: Bearer ${TOKEN}\""
        ),
        Client::Python => format!(
            "# pip install mcp\nimport asyncio, os, httpx\nfrom mcp import Client\nfrom mcp.client.streamable_http import \
             streamable_http_client\n\n\nasync def main():\n    headers = {{\"Authorization\": f\"Bearer \
             {{os.environ['{TOKEN}']}}\"}}\n    async with httpx.AsyncClient(headers=headers) as http:\n        async with \
             Client(streamable_http_client(\"{url}\", http_client=http)) as client:\n            print(await \
             client.list_tools())\n\n\nasyncio.run(main())"
        ),
        Client::Typescript => format!(
            "// npm install @modelcontextprotocol/sdk\nimport {{ Client }} from \"@modelcontextprotocol/sdk/client/index.js\";\nimport {{ \
             StreamableHTTPClientTransport }} from \"@modelcontextprotocol/sdk/client/streamableHttp.js\";\n\nconst headers = {{ \
             Authorization: `Bearer ${{process.env.{TOKEN}}}` }};\nconst client = new Client({{ name: \"my-agent\", version: \"1.0.0\" \
             }});\nawait client.connect(new StreamableHTTPClientTransport(new URL(\"{url}\"), {{ requestInit: {{ headers }} \
             }}));\nconsole.log(await client.listTools());"
        ),
    }
}

fn json(name: &str, url: &str, key: &str, token: &str, kind: &str) -> String {
    format!(
        "{{\n  \"{key}\": {{\n    \"{name}\": {{ {kind}\"url\": \"{url}\", \"headers\": {{ \"Authorization\": \"Bearer {token}\" }} }}\n  }}\n}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_is_told_what_goes_where_and_no_token() {
        let all = Client::value_variants().iter().map(|client| {
            let name = client.to_possible_value().unwrap().get_name().to_owned();
            format!("--- {name}\n{}\n", snippet(*client, "custody", "https://mcp.example:8443/mcp"))
        });
        let all: String = all.collect();
        assert!(!all.contains("cst_"));
        insta::assert_snapshot!(all);
    }

    #[test]
    fn what_is_json_is_json() {
        for client in [Client::ClaudeDesktop, Client::Cursor, Client::Vscode] {
            let said = snippet(client, "custody", "http://127.0.0.1:8080/mcp");
            let json: String = said.lines().filter(|line| !line.starts_with("//")).collect();
            serde_json::from_str::<serde_json::Value>(&json).unwrap();
        }
    }
}
