// The official TypeScript clients. What they do, and what they print, is in tests/scripts/official.py.
//   node client.mjs v1|v2 PLAN, with the token in CUSTODY_TOKEN

const [which, plan] = process.argv.slice(2);
// Milliseconds: more than the slowest call takes on a busy machine.
const CALL_MS_MAX = 60_000;

const say = (line) => console.log(JSON.stringify(line));
const requestInit = { headers: { Authorization: `Bearer ${process.env.CUSTODY_TOKEN}` } };
const who = { name: `custody-test-${which}`, version: '1.0.0' };

async function connect(url) {
  if (which === 'v1') {
    const { Client } = await import('@modelcontextprotocol/sdk/client/index.js');
    const { StreamableHTTPClientTransport } = await import('@modelcontextprotocol/sdk/client/streamableHttp.js');
    const client = new Client(who);
    const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit });
    await client.connect(transport);
    return { client, protocol: transport.protocolVersion, call: (request, options) => client.callTool(request, undefined, options) };
  }
  const { Client, StreamableHTTPClientTransport } = await import('@modelcontextprotocol/client');
  const client = new Client(who, { versionNegotiation: { mode: 'auto' } });
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
  const protocol = client.getNegotiatedProtocolVersion();
  return { client, protocol, call: (request, options) => client.callTool(request, options) };
}

async function visit([server, { url, calls }]) {
  const { client, protocol, call } = await connect(url);
  const { tools } = await client.listTools();
  say({ server, protocol, tools: tools.map((tool) => tool.name).sort() });
  for (const [name, given] of calls) {
    const progress = [];
    const onprogress = (step) => progress.push([step.progress, step.total]);
    let ended;
    try {
      const result = await call({ name, arguments: given }, { onprogress, timeout: CALL_MS_MAX });
      ended = result.isError ? 'tool_error' : 'ok';
    } catch (why) {
      if (typeof why.code !== 'number') throw why;
      ended = 'rpc_error';
    }
    say({ server, tool: name, ended, progress });
  }
  await client.close();
}

await Promise.all(Object.entries(JSON.parse(plan)).map(visit));
