// Tasks of 2026-07-28 (the extension `io.modelcontextprotocol/tasks`), which the official SDK leaves to the server: what a call
// that goes on behind its answer is doing, what it asks meanwhile, and how it ended. And the tools that the suite's scenarios call.
// Knows no SDK; modern.mjs puts the methods on the wire.

import { randomUUID } from 'node:crypto';

export const EXTENSION = 'io.modelcontextprotocol/tasks';
// Milliseconds for which a task is kept after it began, and between two questions how it goes.
const KEPT_MS = 3_600_000;
const POLL_MS = 100;

const says = (words) => ({ content: [{ type: 'text', text: words }] });
const asks = (message, key) => ({
  method: 'elicitation/create',
  params: { message, requestedSchema: { type: 'object', properties: { [key]: { type: 'string' } } } },
});

class Task {
  #id = randomUUID();
  #began = new Date().toISOString();
  #changed = this.#began;
  #status = 'working';
  #outcome = {};
  #asked = {};
  #given = {};
  #resume;
  #cancelled = new AbortController();

  constructor(work) {
    work(this).then(
      (result) => this.#end('completed', { result }),
      (error) => this.#end('failed', { error: { code: -32603, message: error.message } }),
    );
  }

  get id() {
    return this.#id;
  }

  #become(status) {
    this.#status = status;
    this.#changed = new Date().toISOString();
  }

  #end(status, outcome) {
    if (this.#ended) return;
    this.#become(status);
    this.#outcome = outcome;
  }

  get #ended() {
    return ['completed', 'failed', 'cancelled'].includes(this.#status);
  }

  /** For the work: goes on after so long, or when the task is cancelled. */
  pause(ms) {
    return new Promise((done) => {
      const timer = setTimeout(done, ms);
      this.#cancelled.signal.addEventListener('abort', () => (clearTimeout(timer), done()));
    });
  }

  /** For the work: what the client answers, when it has answered all. */
  ask(questions) {
    this.#asked = { ...questions };
    this.#given = {};
    this.#become('input_required');
    return new Promise((resume) => (this.#resume = resume));
  }

  answer(responses) {
    for (const [key, response] of Object.entries(responses)) {
      if (this.#asked[key] === undefined) continue;
      this.#given[key] = response;
      delete this.#asked[key];
    }
    if (this.#status !== 'input_required' || Object.keys(this.#asked).length > 0) return;
    this.#become('working');
    this.#resume(this.#given);
  }

  cancel() {
    this.#end('cancelled', {});
    this.#cancelled.abort();
  }

  about() {
    const task = { taskId: this.#id, status: this.#status, createdAt: this.#began, lastUpdatedAt: this.#changed };
    return { ...task, ttlMs: KEPT_MS, pollIntervalMs: POLL_MS };
  }

  inDetail() {
    const waits = this.#status === 'input_required' ? { inputRequests: this.#asked } : {};
    return { ...this.about(), ...waits, ...this.#outcome };
  }
}

const tasks = new Map();

/** The result of a call that goes on as a task. */
export function begin(work) {
  const task = new Task(work);
  tasks.set(task.id, task);
  return { resultType: 'task', ...task.about() };
}

/** The methods of the extension; each gets the task that the request names, and what the client answered. */
export const METHODS = {
  'tasks/get': (task) => task.inDetail(),
  'tasks/update': (task, responses) => (task.answer(responses), {}),
  'tasks/cancel': (task) => (task.cancel(), {}),
};

export const find = (id) => tasks.get(id);

const tool = (name, properties, more) => ({
  name,
  description: `The scenarios of tasks call it: ${name.replaceAll('_', ' ')}`,
  inputSchema: { type: 'object', properties },
  ...more,
});
const WORDS = { type: 'string' };

/** `work` goes on as a task if the client knows tasks, else the call waits for it; `required` refuses a client that does not. */
export const TASK_TOOLS = [
  tool('greet', { name: WORDS }, { run: ({ name }) => says(`Hello, ${name}!`) }),
  tool(
    'slow_compute',
    { seconds: { type: 'number' }, label: WORDS },
    {
      work: async ({ seconds }, _, task) => {
        await task.pause(seconds * 1000);
        return says(`computed for ${seconds} s`);
      },
    },
  ),
  tool('failing_job', {}, { required: true, work: async () => ({ ...says('the job failed'), isError: true }) }),
  tool('protocol_error_job', {}, {
    required: true,
    work: async () => {
      throw new Error('the server failed, not the tool');
    },
  }),
  tool('confirm_delete', { filename: WORDS }, {
    required: true,
    work: async ({ filename }, _, task) => {
      const { it } = await task.ask({ it: asks(`Delete ${filename}?`, 'confirm') });
      return says(`${it.action}: ${filename}`);
    },
  }),
  tool('multi_input', {}, {
    required: true,
    work: async (_, __, task) => {
      const given = await task.ask({ one: asks('What is first?', 'name'), other: asks('What is second?', 'name') });
      return says(`given: ${Object.keys(given).join(' ')}`);
    },
  }),
  // Asks in rounds first, and goes on as a task when it knows all.
  tool('test_tool_with_task', {}, {
    required: true,
    before: (call) => call.ask({ user_name: asks('What is your name?', 'name') }),
    work: async (_, { user_name }) => says(`Hello, ${user_name.content?.name}!`),
  }),
];
