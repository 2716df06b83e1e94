// The reference server of 2026-07-28, on the official `@modelcontextprotocol/server`: no session, a server for each request.
// What it offers is in things.mjs.
//   node modern.mjs PORT        serves http://localhost:PORT/mcp until it is killed, and says `listening` when it does,
// and `called NAME` of each call of a tool

import { randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { localhostHostValidation, localhostOriginValidation, toNodeHandler } from '@modelcontextprotocol/node';
import {
  McpServer,
  MissingRequiredClientCapabilityError,
  ProtocolError,
  ProtocolErrorCode,
  ResourceTemplate,
  createMcpHandler,
  createRequestStateCodec,
  fromJsonSchema,
  inputRequired,
} from '@modelcontextprotocol/server';
import * as z from 'zod';
import { EXTENSION, METHODS, TASK_TOOLS, begin, find } from './tasks.mjs';
import { ASKING_PROMPT, MODERN_TOOLS, PROMPTS, RESOURCES, TEMPLATE, complete, ofTemplate } from './things.mjs';

// What was answered in earlier rounds goes through the client, signed.
const state = createRequestStateCodec({ key: randomBytes(32) });

const declared = (context) => context.mcpReq.envelope?.['io.modelcontextprotocol/clientCapabilities'] ?? {};
const knowsTasks = (context) => declared(context).extensions?.[EXTENSION] !== undefined;

function mustKnowTasks(context) {
  if (knowsTasks(context)) return;
  throw new MissingRequiredClientCapabilityError({ requiredCapabilities: { extensions: { [EXTENSION]: {} } } });
}

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
    can: (capability) => declared(context)[capability] !== undefined,
    changed: (what) => (what === 'tools' ? handler.notify.toolsChanged() : handler.notify.promptsChanged()),
  };
}

/** Runs a tool or prompt; what it still has to ask becomes the result. */
const running = (run) => async (given, context) => {
  try {
    return await run(given, during(context), context);
  } catch (why) {
    if (!(why instanceof Asked)) throw why;
    const { questions, answered } = why;
    return inputRequired({ inputRequests: questions, requestState: await state.mint({ answered }, context) });
  }
};

/** A call of a tool, which may go on as a task. */
const calling = ({ run, work, required, before }) =>
  running(async (given, call, context) => {
    if (work === undefined) return run(given, call);
    if (required) mustKnowTasks(context);
    const known = await before?.(call);
    if (knowsTasks(context)) return begin((task) => work(given, known, task));
    return work(given, known, { pause: (ms) => new Promise((done) => setTimeout(done, ms)) });
  });

const TOOLS = [...MODERN_TOOLS, ...TASK_TOOLS].map((tool) => ({ ...tool, call: calling(tool) }));

function offerTools(server) {
  for (const { name, description, inputSchema, call } of TOOLS) {
    server.registerTool(name, { description, inputSchema: fromJsonSchema(inputSchema) }, call);
  }
  // The SDK's own handler would make a result of the tool out of every error: a client that lacks what a call needs is told so.
  server.server.setRequestHandler('tools/call', async ({ params }, context) => {
    console.log(`called ${params.name}`);
    const tool = TOOLS.find(({ name }) => name === params.name);
    if (tool === undefined) throw new ProtocolError(ProtocolErrorCode.InvalidParams, `there is no tool ${params.name}`);
    try {
      return await tool.call(params.arguments ?? {}, context);
    } catch (why) {
      if (why instanceof ProtocolError) throw why;
      return { content: [{ type: 'text', text: why.message }], isError: true };
    }
  });
}

function offerTasks(server) {
  const params = z.looseObject({ taskId: z.string() });
  for (const [method, answer] of Object.entries(METHODS)) {
    server.server.setRequestHandler(method, { params }, (given, context) => {
      mustKnowTasks(context);
      const task = find(given.taskId);
      if (task === undefined) throw new ProtocolError(ProtocolErrorCode.InvalidParams, 'there is no such task');
      // The SDK takes these out of what it gives to a handler, as it does for a call of a tool.
      return answer(task, context.mcpReq.inputResponses ?? {});
    });
  }
}

/** A server for one request. */
function newServer() {
  const changing = { listChanged: true };
  const capabilities = {
    tools: changing,
    prompts: changing,
    resources: {},
    logging: {},
    completions: {},
    extensions: { [EXTENSION]: {} },
  };
  const server = new McpServer(
    { name: 'custody-reference-modern', version: '1.0.0' },
    { capabilities, requestState: { verify: state.verify } },
  );
  offerTools(server);
  offerTasks(server);
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
