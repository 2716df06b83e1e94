// The reference server of 2025-11-25, on the official `@modelcontextprotocol/sdk`: sessions, SSE with resumption, requests of
// the server to the client. What it offers is in things.mjs.
//   node legacy.mjs PORT        serves http://localhost:PORT/mcp until it is killed, and says `listening` when it does,
// and `called NAME` of each call of a tool

import { randomUUID } from 'node:crypto';
import { Server } from '@modelcontextprotocol/sdk/server/index.js';
import { createMcpExpressApp } from '@modelcontextprotocol/sdk/server/express.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import {
  CallToolRequestSchema,
  CompleteRequestSchema,
  ErrorCode,
  GetPromptRequestSchema,
  ListPromptsRequestSchema,
  ListResourcesRequestSchema,
  ListResourceTemplatesRequestSchema,
  ListToolsRequestSchema,
  McpError,
  ReadResourceRequestSchema,
  ResultSchema,
  SubscribeRequestSchema,
  UnsubscribeRequestSchema,
} from '@modelcontextprotocol/sdk/types.js';
import { LEGACY_TOOLS, PROMPTS, RESOURCES, TEMPLATE, complete, ofTemplate } from './things.mjs';

// Events that a client may ask for again, of all sessions. The suite needs a few hundred.
const EVENTS_MAX = 10_000;
// Milliseconds after which a client may come back for the rest of a stream.
const RETRY_MS = 200;

/** Keeps the newest events, so that a stream goes on after its connection has ended. */
class Events {
  #kept = new Map();
  #count = 0;

  async storeEvent(streamId, message) {
    const eventId = `${streamId}/${++this.#count}`;
    this.#kept.set(eventId, { streamId, message });
    if (this.#kept.size > EVENTS_MAX) this.#kept.delete(this.#kept.keys().next().value);
    return eventId;
  }

  async getStreamIdForEventId(eventId) {
    return this.#kept.get(eventId)?.streamId;
  }

  async replayEventsAfter(lastEventId, { send }) {
    const streamId = this.#kept.get(lastEventId)?.streamId;
    let behind = false;
    for (const [eventId, event] of [...this.#kept]) {
      if (behind && event.streamId === streamId && event.message.jsonrpc) await send(eventId, event.message);
      behind ||= eventId === lastEventId;
    }
    return streamId;
  }
}

/** What a tool or prompt may do while it runs. */
function during(server, extra) {
  const notify = (method, params) => extra.sendNotification({ method, params });
  return {
    progress: async (progress) => {
      const progressToken = extra._meta?.progressToken;
      if (progressToken !== undefined) await notify('notifications/progress', { progressToken, progress, total: 100 });
    },
    log: (data) => notify('notifications/message', { level: 'info', data }),
    ask: async (questions) => {
      const given = {};
      for (const [key, question] of Object.entries(questions)) given[key] = await extra.sendRequest(question, ResultSchema);
      return given;
    },
    can: (capability) => server.getClientCapabilities()?.[capability] !== undefined,
    hangUp: () => extra.closeSSEStream?.(),
    changed: (what) => notify(`notifications/${what}/list_changed`, {}),
  };
}

const found = (thing, what) => {
  if (thing === undefined) throw new McpError(ErrorCode.InvalidParams, `there is no ${what}`);
  return thing;
};

/** A server for one session. */
function newServer() {
  const capabilities = {
    tools: { listChanged: true },
    resources: { subscribe: true, listChanged: true },
    prompts: { listChanged: true },
    logging: {},
    completions: {},
  };
  const server = new Server({ name: 'custody-reference-legacy', version: '1.0.0' }, { capabilities });
  const on = (schema, handler) => server.setRequestHandler(schema, handler);

  on(ListToolsRequestSchema, () => ({ tools: LEGACY_TOOLS.map(({ run: _, ...tool }) => tool) }));
  on(CallToolRequestSchema, async ({ params }, extra) => {
    console.log(`called ${params.name}`);
    const tool = found(LEGACY_TOOLS.find(({ name }) => name === params.name), `tool ${params.name}`);
    try {
      return await tool.run(params.arguments ?? {}, during(server, extra));
    } catch (why) {
      return { content: [{ type: 'text', text: why.message }], isError: true };
    }
  });

  on(ListResourcesRequestSchema, () => ({
    resources: Object.entries(RESOURCES).map(([uri, { mimeType }]) => ({ uri, mimeType, name: uri, description: `what is at ${uri}` })),
  }));
  on(ListResourceTemplatesRequestSchema, () => ({
    resourceTemplates: [{ uriTemplate: TEMPLATE, name: 'template', description: 'data of an id', mimeType: 'application/json' }],
  }));
  on(ReadResourceRequestSchema, ({ params: { uri } }) => ({
    contents: [{ uri, ...found(RESOURCES[uri] ?? ofTemplate(uri), `resource ${uri}`) }],
  }));
  on(SubscribeRequestSchema, () => ({}));
  on(UnsubscribeRequestSchema, () => ({}));

  on(ListPromptsRequestSchema, () => ({
    prompts: PROMPTS.map((prompt) => ({
      name: prompt.name,
      description: `The scenarios get it: ${prompt.name}`,
      arguments: prompt.arguments.map((name) => ({ name, description: `goes into the text: ${name}`, required: true })),
    })),
  }));
  on(GetPromptRequestSchema, ({ params }, extra) =>
    found(PROMPTS.find(({ name }) => name === params.name), `prompt ${params.name}`).run(params.arguments ?? {}, during(server, extra)),
  );
  on(CompleteRequestSchema, ({ params }) => complete(params.argument.value));
  return server;
}

const port = Number(process.argv[2]);
const sessions = new Map();
const events = new Events();
// Refuses what another host's page sends to this one.
const app = createMcpExpressApp({ host: 'localhost' });

const refuse = (response, status, message) =>
  response.status(status).json({ jsonrpc: '2.0', id: null, error: { code: -32000, message } });

app.all('/mcp', async (request, response) => {
  const named = request.headers['mcp-session-id'];
  let transport = sessions.get(named);
  if (named !== undefined && transport === undefined) return refuse(response, 404, 'there is no such session');
  if (transport === undefined) {
    if (request.body?.method !== 'initialize') return refuse(response, 400, 'a session begins with initialize');
    transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (id) => sessions.set(id, transport),
      onsessionclosed: (id) => sessions.delete(id),
      eventStore: events,
      retryInterval: RETRY_MS,
    });
    await newServer().connect(transport);
  }
  await transport.handleRequest(request, response, request.body);
});

app.listen(port, '127.0.0.1', (why) => {
  if (why) throw why;
  console.log('listening');
});
