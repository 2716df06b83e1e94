// The reference server of 2026-07-28, on the official `@modelcontextprotocol/server`: no session, a server for each request.
// What it offers is in things.mjs.
//   node modern.mjs PORT        serves http://localhost:PORT/mcp until it is killed, and says `listening` when it does

import { randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { localhostHostValidation, localhostOriginValidation, toNodeHandler } from '@modelcontextprotocol/node';
import {
  McpServer,
  ResourceTemplate,
  createMcpHandler,
  createRequestStateCodec,
  fromJsonSchema,
  inputRequired,
} from '@modelcontextprotocol/server';
import { ASKING_PROMPT, MODERN_TOOLS, PROMPTS, RESOURCES, TEMPLATE, complete, ofTemplate } from './things.mjs';

// What was answered in earlier rounds goes through the client, signed.
const state = createRequestStateCodec({ key: randomBytes(32) });

/** Not all is answered yet: the client is to call again. */
class Asked {
  constructor(questions, answered) {
    Object.assign(this, { questions, answered });
  }
}

/** What a tool or prompt may do while it runs. */
function during(context) {
  const { mcpReq } = context;
  const answered = { ...mcpReq.requestState()?.answered, ...mcpReq.inputResponses };
  return {
    progress: async (progress) => {
      const progressToken = mcpReq._meta?.progressToken;
      if (progressToken === undefined) return;
      await mcpReq.notify({ method: 'notifications/progress', params: { progressToken, progress, total: 100 } });
    },
    log: (data) => mcpReq.log('info', data),
    ask: async (questions) => {
      if (Object.keys(questions).some((key) => answered[key] === undefined)) throw new Asked(questions, answered);
      return Object.fromEntries(Object.keys(questions).map((key) => [key, answered[key]]));
    },
    can: (capability) => mcpReq.envelope?.['io.modelcontextprotocol/clientCapabilities']?.[capability] !== undefined,
    changed: (what) => (what === 'tools' ? handler.notify.toolsChanged() : handler.notify.promptsChanged()),
  };
}

/** Runs a tool or prompt; what it still has to ask becomes the result. */
const running = (run) => async (given, context) => {
  try {
    return await run(given, during(context));
  } catch (why) {
    if (!(why instanceof Asked)) throw why;
    const { questions, answered } = why;
    return inputRequired({ inputRequests: questions, requestState: await state.mint({ answered }, context) });
  }
};

/** A server for one request. */
function newServer() {
  const capabilities = { tools: { listChanged: true }, prompts: { listChanged: true }, resources: {}, logging: {}, completions: {} };
  const server = new McpServer(
    { name: 'custody-reference-modern', version: '1.0.0' },
    { capabilities, requestState: { verify: state.verify } },
  );
  for (const { name, description, inputSchema, run } of MODERN_TOOLS) {
    server.registerTool(name, { description, inputSchema: fromJsonSchema(inputSchema) }, running(run));
  }
  for (const [uri, content] of Object.entries(RESOURCES)) {
    const about = { description: `what is at ${uri}`, mimeType: content.mimeType };
    server.registerResource(uri, uri, about, () => ({ contents: [{ uri, ...content }] }));
  }
  const template = new ResourceTemplate(TEMPLATE, { list: undefined });
  server.registerResource('template', template, { description: 'data of an id', mimeType: 'application/json' }, ({ href }) => ({
    contents: [{ uri: href, ...ofTemplate(href) }],
  }));
  for (const { name, arguments: names, run } of [...PROMPTS, ASKING_PROMPT]) {
    const properties = Object.fromEntries(names.map((name) => [name, { type: 'string', description: `goes into the text: ${name}` }]));
    const argsSchema = fromJsonSchema({ type: 'object', properties, required: names });
    server.registerPrompt(name, { description: `The scenarios get it: ${name}`, argsSchema }, running(run));
  }
  server.server.setRequestHandler('completion/complete', ({ params }) => complete(params.argument.value));
  return server;
}

const port = Number(process.argv[2]);
const handler = createMcpHandler(newServer, { legacy: 'reject' });
const answer = toNodeHandler(handler);
// Both refuse what another host's page sends to this one.
const guards = [localhostHostValidation(), localhostOriginValidation()];

createServer((request, response) => {
  if (!guards.every((allows) => allows(request, response))) return;
  if (request.url !== '/mcp') return response.writeHead(404).end();
  answer(request, response);
}).listen(port, '127.0.0.1', () => console.log('listening'));
