// What both reference servers offer: the tools, resources and prompts that the scenarios of the official conformance suite ask
// for, by the names and with the words that these ask for. Knows no SDK: `legacy.mjs` and `modern.mjs` put the official ones
// around it, and give each tool a `call`:
//   call.progress(n)        n of 100, if the client asked for progress
//   call.log(text)          a log message of level info, if the client wants them
//   call.ask(questions)     what the client answers: over the connection (2025-11-25) or in another round (2026-07-28)
//   call.can(capability)    whether the client declared it
//   call.hangUp()           the stream of this call ends, and the client comes back for the rest
//   call.changed(what)      `tools` or `prompts`: whoever listens is told that the list changed

// One red pixel, and two samples of silence.
const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNgYPgPAAEDAQA2dBFAAAAAAElFTkSuQmCC';
const WAV = 'UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQIAAACAgA==';

const text = (words) => ({ type: 'text', text: words });
const image = { type: 'image', data: PNG, mimeType: 'image/png' };
const resource = (uri, mimeType, words) => ({ type: 'resource', resource: { uri, mimeType, text: words } });
const says = (...content) => ({ content });
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const NOTHING = { type: 'object', properties: {} };
const strings = (...names) => ({
  type: 'object',
  properties: Object.fromEntries(names.map((name) => [name, { type: 'string' }])),
  required: names,
});

// Questions that a server asks a client.
const form = (message, properties, required = Object.keys(properties)) => ({
  method: 'elicitation/create',
  params: { message, requestedSchema: { type: 'object', properties, required } },
});
const sample = (words, maxTokens = 100) => ({
  method: 'sampling/createMessage',
  params: { messages: [{ role: 'user', content: text(words) }], maxTokens },
});
const roots = { method: 'roots/list', params: {} };
const answer = ({ action, content }) => `action=${action}, content=${JSON.stringify(content ?? {})}`;

const STRING = { type: 'string' };
const DEFAULTS = {
  name: { type: 'string', default: 'John Doe' },
  age: { type: 'integer', default: 30 },
  score: { type: 'number', default: 95.5 },
  status: { type: 'string', enum: ['active', 'inactive', 'pending'], default: 'active' },
  verified: { type: 'boolean', default: true },
};
const titled = (which, ...titles) => titles.map((title, at) => ({ const: `${which}${at + 1}`, title }));
const OPTIONS = ['option1', 'option2', 'option3'];
const ENUMS = {
  untitledSingle: { type: 'string', enum: OPTIONS },
  titledSingle: { type: 'string', oneOf: titled('value', 'First Option', 'Second Option', 'Third Option') },
  legacyEnum: { type: 'string', enum: ['opt1', 'opt2', 'opt3'], enumNames: ['Option One', 'Option Two', 'Option Three'] },
  untitledMulti: { type: 'array', items: { type: 'string', enum: OPTIONS } },
  titledMulti: { type: 'array', items: { anyOf: titled('value', 'First Choice', 'Second Choice', 'Third Choice') } },
};

// Every keyword of JSON Schema 2020-12 that the suite looks for.
const SCHEMA_2020_12 = {
  $schema: 'https://json-schema.org/draft/2020-12/schema',
  type: 'object',
  $defs: { address: { $anchor: 'addressDef', type: 'object', properties: { street: STRING, city: STRING } } },
  properties: {
    name: STRING,
    address: { $ref: '#/$defs/address' },
    contactMethod: { type: 'string', enum: ['phone', 'email'] },
    phone: STRING,
    email: STRING,
  },
  allOf: [{ anyOf: [{ required: ['phone'] }, { required: ['email'] }] }],
  if: { properties: { contactMethod: { const: 'phone' } }, required: ['contactMethod'] },
  then: { required: ['phone'] },
  else: { required: ['email'] },
  additionalProperties: false,
};

const plain = {
  test_simple_text: () => says(text('This is a simple text response for testing.')),
  test_image_content: () => says(image),
  test_audio_content: () => says({ type: 'audio', data: WAV, mimeType: 'audio/wav' }),
  test_embedded_resource: () =>
    says(resource('test://embedded-resource', 'text/plain', 'This is an embedded resource content.')),
  test_multiple_content_types: () =>
    says(
      text('Multiple content types test:'),
      image,
      resource('test://mixed-content-resource', 'application/json', '{"test":"data","value":123}'),
    ),
  test_error_handling: () => {
    throw new Error('This tool intentionally returns an error for testing');
  },
  test_tool_with_progress: async (_, call) => {
    for (const done of [0, 50, 100]) {
      await call.progress(done);
      await pause(50);
    }
    return says(text('all of it is done'));
  },
};

const legacy = {
  test_tool_with_logging: async (_, call) => {
    for (const words of ['Tool execution started', 'Tool processing data', 'Tool execution completed']) {
      await call.log(words);
      await pause(50);
    }
    return says(text('three messages were logged'));
  },
  test_reconnection: async (_, call) => {
    call.hangUp();
    await pause(100);
    return says(text('said on the stream that the client opened again'));
  },
  test_elicitation_sep1034_defaults: async (_, call) => {
    const { it } = await call.ask({ it: form('Look at the defaults', DEFAULTS, []) });
    return says(text(`Elicitation completed: ${answer(it)}`));
  },
  test_elicitation_sep1330_enums: async (_, call) => {
    const { it } = await call.ask({ it: form('Choose', ENUMS, []) });
    return says(text(`Elicitation completed: ${answer(it)}`));
  },
};

const name = form('What is your name?', { name: STRING });
const modern = {
  test_missing_capability: async (_, call) => {
    await call.ask({ it: sample('Are you there?') });
    return says(text('the client can sample'));
  },
  test_streaming_elicitation: async (_, call) => {
    await call.progress(50);
    const { it } = await call.ask({ it: form('Go on?', { ok: { type: 'boolean' } }) });
    return says(text(answer(it)));
  },
  test_logging_tool: async (_, call) => {
    await call.log('one message');
    return says(text('logged'));
  },
  test_trigger_tool_change: (_, call) => {
    call.changed('tools');
    return says(text('said so'));
  },
  test_trigger_prompt_change: (_, call) => {
    call.changed('prompts');
    return says(text('said so'));
  },
  test_input_required_result_elicitation: async (_, call) => {
    const { user_name } = await call.ask({ user_name: name });
    return says(text(`Hello, ${user_name.content?.name}!`));
  },
  test_input_required_result_sampling: async (_, call) => {
    const { capital_question } = await call.ask({ capital_question: sample('What is the capital of France?') });
    return says(text(`LLM response: ${capital_question.content?.text}`));
  },
  test_input_required_result_list_roots: async (_, call) => {
    const { client_roots } = await call.ask({ client_roots: roots });
    return says(text(`Roots: ${client_roots.roots?.map((root) => root.uri).join(' ')}`));
  },
  test_input_required_result_request_state: async (_, call) => {
    await call.ask({ confirm: form('Please confirm', { ok: { type: 'boolean' } }) });
    return says(text('state-ok'));
  },
  test_input_required_result_multiple_inputs: async (_, call) => {
    const given = await call.ask({ user_name: name, greeting: sample('Generate a greeting', 50), client_roots: roots });
    return says(text(`given: ${Object.keys(given).join(' ')}`));
  },
  test_input_required_result_multi_round: async (_, call) => {
    const { step1 } = await call.ask({ step1: form('Step 1: What is your name?', { name: STRING }) });
    const { step2 } = await call.ask({ step2: form('Step 2: What is your favorite color?', { color: STRING }) });
    return says(text(`${step1.content?.name} likes ${step2.content?.color}`));
  },
  test_input_required_result_tampered_state: async (_, call) => {
    await call.ask({ confirm: form('Please confirm', { ok: { type: 'boolean' } }) });
    return says(text('nobody touched the state'));
  },
  test_input_required_result_capabilities: async (_, call) => {
    const questions = { elicited: call.can('elicitation') && name, sampled: call.can('sampling') && sample('Say hello') };
    const given = await call.ask(Object.fromEntries(Object.entries(questions).filter(([, question]) => question)));
    return says(text(`given: ${Object.keys(given).join(' ')}`));
  },
};

const described = (tools) =>
  Object.entries(tools).map(([name, run]) => ({
    name,
    description: `The scenarios call it: ${name.replace(/^test_/, '').replaceAll('_', ' ')}`,
    inputSchema: NOTHING,
    run,
  }));

const COMMON = [
  ...described(plain),
  {
    name: 'json_schema_2020_12_tool',
    description: 'Tool with JSON Schema 2020-12 features',
    inputSchema: SCHEMA_2020_12,
    run: () => says(text('it fits')),
  },
];

/** The tools of 2025-11-25, where a server asks over the client's own connection. */
export const LEGACY_TOOLS = [
  ...COMMON,
  ...described(legacy),
  {
    name: 'test_sampling',
    description: 'Asks the model of the client',
    inputSchema: strings('prompt'),
    run: async ({ prompt }, call) => {
      const { it } = await call.ask({ it: sample(prompt) });
      return says(text(`LLM response: ${it.content?.text}`));
    },
  },
  {
    name: 'test_elicitation',
    description: 'Asks the person at the client',
    inputSchema: strings('message'),
    run: async ({ message }, call) => {
      const { it } = await call.ask({ it: form(message, { username: STRING, email: STRING }) });
      return says(text(`User response: ${answer(it)}`));
    },
  },
];

/** The tools of 2026-07-28, where a server asks by asking to be called again. */
export const MODERN_TOOLS = [
  ...COMMON,
  ...described(modern),
  {
    name: 'test_custom_header',
    description: 'Has an argument that is also a header',
    inputSchema: { type: 'object', properties: { region: { type: 'string', 'x-mcp-header': 'Region' } } },
    run: ({ region }) => says(text(`region ${region}`)),
  },
];

/** By address. */
export const RESOURCES = {
  'test://static-text': { mimeType: 'text/plain', text: 'This is the content of the static text resource.' },
  'test://static-binary': { mimeType: 'image/png', blob: PNG },
  'test://watched-resource': { mimeType: 'text/plain', text: 'Somebody may be told when this changes.' },
};

/** The one template, and what stands at an address of it. */
export const TEMPLATE = 'test://template/{id}/data';
export const ofTemplate = (uri) => {
  const id = /^test:\/\/template\/([^/]+)\/data$/.exec(uri)?.[1];
  if (id === undefined) return undefined;
  const data = { id, templateTest: true, data: `Data for ID: ${id}` };
  return { mimeType: 'application/json', text: JSON.stringify(data) };
};

const user = (...content) => ({ messages: content.map((part) => ({ role: 'user', content: part })) });

export const PROMPTS = [
  { name: 'test_simple_prompt', arguments: [], run: () => user(text('This is a simple prompt for testing.')) },
  {
    name: 'test_prompt_with_arguments',
    arguments: ['arg1', 'arg2'],
    run: ({ arg1, arg2 }) => user(text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`)),
  },
  {
    name: 'test_prompt_with_embedded_resource',
    arguments: ['resourceUri'],
    run: ({ resourceUri }) =>
      user(
        resource(resourceUri, 'text/plain', 'Embedded resource content for testing.'),
        text('Please process the embedded resource above.'),
      ),
  },
  { name: 'test_prompt_with_image', arguments: [], run: () => user(image, text('Please analyze the image above.')) },
];

/** Of 2026-07-28 alone. */
export const ASKING_PROMPT = {
  name: 'test_input_required_result_prompt',
  arguments: [],
  run: async (_, call) => {
    const { user_context } = await call.ask({ user_context: form('What should the prompt say?', { context: STRING }) });
    return user(text(`Use this: ${user_context.content?.context}`));
  },
};

/** What `completion/complete` may say for any argument. */
export const complete = (value) => {
  const values = ['paris', 'park', 'party'].filter((word) => word.startsWith(value));
  return { completion: { values, total: values.length, hasMore: false } };
};
