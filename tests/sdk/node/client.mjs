// Does one thing with OpenAI's client library and prints what came of it as JSON:
//
//   node client.mjs THEME BASE_URL
//
// What must hold is in test_openai_sdk_node.py.

import OpenAI from 'openai';

const [theme, baseURL] = process.argv.slice(2);
const options = { baseURL, apiKey: 'any', maxRetries: 0 };
const client = new OpenAI(options);
const { completions } = client.chat;
const user = (content) => [{ role: 'user', content }];
const asked = (model, text = 'one two three') => ({ model, messages: user(text) });

const city = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const tools = ['weather', 'time'].map((name) => ({ type: 'function', function: { name, parameters: city } }));

// What an error says of itself.
const told = (error) => ({
  class: error.constructor.name,
  status: error.status ?? null,
  code: error.code ?? null,
  param: error.param ?? null,
  type: error.type ?? null,
  requestID: error.requestID ?? null,
  message: error.message,
});

// The process stays for a while, so that it is not its end that ends a request.
const staying = async (result) => {
  await new Promise((resolve) => setTimeout(resolve, 800));
  return result;
};

const failure = async (promise) => {
  try {
    await promise;
    return null;
  } catch (error) {
    return told(error);
  }
};

// A stream read to its end, or to its error.
const read = async (request) => {
  const found = { text: '', reasoning: '', calls: [], finish: [], ids: [], usage: null, error: null };
  try {
    for await (const chunk of await completions.create({ ...request, stream: true })) {
      if (!found.ids.includes(chunk.id)) found.ids.push(chunk.id);
      found.usage = chunk.usage ?? found.usage;
      for (const { delta, finish_reason: finish } of chunk.choices) {
        found.text += delta.content ?? '';
        found.reasoning += delta.reasoning_content ?? '';
        for (const call of delta.tool_calls ?? []) {
          found.calls[call.index] ??= { name: call.function.name, arguments: '' };
          found.calls[call.index].arguments += call.function.arguments;
        }
        if (finish) found.finish.push(finish);
      }
    }
  } catch (error) {
    found.error = told(error);
  }
  return found;
};

const themes = {
  async whole() {
    const answer = await completions.create(asked('mock/reasoning'));
    return { answer, requestID: answer._request_id };
  },

  async stream() {
    const request = asked('mock/reasoning');
    return { plain: await read(request), counted: await read({ ...request, stream_options: { include_usage: true } }) };
  },

  async choices() {
    const pieces = ['', ''];
    for await (const chunk of await completions.create({ ...asked('mock/echo'), n: 2, stream: true })) {
      for (const choice of chunk.choices) pieces[choice.index] += choice.delta.content ?? '';
    }
    return pieces;
  },

  async helper() {
    const stream = completions.stream(asked('mock/echo'));
    const pieces = [];
    stream.on('content', (delta) => pieces.push(delta));
    return { content: await stream.finalContent(), pieces, finish: (await stream.finalChatCompletion()).choices[0].finish_reason };
  },

  async tools() {
    const request = { ...asked('mock/tools'), tools };
    const { message, finish_reason: finish } = (await completions.create(request)).choices[0];
    const results = message.tool_calls.map(({ id }, index) => ({ role: 'tool', tool_call_id: id, content: ['rain', 'noon'][index] }));
    const again = await completions.create({ ...request, messages: [...request.messages, message, ...results] });
    return { message, finish, streamed: await read(request), again: again.choices[0].message.content };
  },

  // The library itself calls the functions and sends their results back.
  async runner() {
    const runnable = (name, answer) => ({
      type: 'function',
      function: { name, description: name, parameters: city, parse: JSON.parse, function: () => answer },
    });
    const request = { ...asked('mock/tools'), tools: [runnable('weather', 'rain'), runnable('time', 'noon')] };
    return {
      whole: await completions.runTools(request).finalContent(),
      streamed: await completions.runTools({ ...request, stream: true }).finalContent(),
    };
  },

  async schema() {
    const schema = {
      type: 'object',
      properties: { certain: { type: 'boolean' }, steps: { type: 'array', items: city }, answer: { enum: ['yes', 'no'] } },
      required: ['certain', 'steps', 'answer'],
      additionalProperties: false,
    };
    const format = { type: 'json_schema', json_schema: { name: 'proof', strict: true, schema } };
    const answer = await completions.parse({ ...asked('mock/echo'), response_format: format });
    return answer.choices[0].message.parsed;
  },

  async errors() {
    const found = {};
    for (const model of ['mock/error-400', 'mock/error-401', 'mock/error-429', 'mock/error-500', 'mock/error-503', 'nosuch/model']) {
      found[model] = [
        await failure(completions.create(asked(model))),
        await failure(completions.create({ ...asked(model), stream: true })),
      ];
    }
    found.wrong = [await failure(completions.create({ ...asked('mock/echo'), messages: [{ role: 'user', content: 5 }] }))];
    found.large = [await failure(completions.create(asked('mock/echo', 'x'.repeat(4_000_000))))];
    found.path = [await failure(client.get('/no/such/thing'))];
    return found;
  },

  async cut() {
    return { streamed: await read(asked('mock/cut-10')), whole: await failure(completions.create(asked('mock/cut-10'))) };
  },

  async stalled() {
    return await read(asked('impatient'));
  },

  async heartbeats() {
    const found = {};
    for (const [quick, slow] of [
      ['mock/echo', 'mock/echo+slow-70'],
      ['mock/reasoning', 'mock/reasoning+slow-25'],
      ['mock/tools', 'mock/tools+slow-70'],
    ]) {
      found[quick] = [await read({ ...asked(quick), tools }), await read({ ...asked(slow), tools })];
    }
    return found;
  },

  async models() {
    const listed = [];
    for await (const model of client.models.list()) listed.push(model.id);
    return {
      listed,
      retrieved: await client.models.retrieve('mock/echo'),
      missing: await failure(client.models.retrieve('impatent')),
    };
  },

  async headers() {
    const { data, response, request_id: requestID } = await completions.create({ ...asked('mock/echo'), stream: true }).withResponse();
    let text = '';
    for await (const chunk of data) text += chunk.choices[0]?.delta.content ?? '';
    return { text, requestID, target: response.headers.get('x-deltaway-target'), type: response.headers.get('content-type') };
  },

  // What the library made of an answer goes back with its message.
  async returned() {
    const strict = [{ type: 'function', function: { ...tools[0].function, strict: true } }];
    const { message } = (await completions.parse({ ...asked('mock/tools'), tools: strict })).choices[0];
    const result = { role: 'tool', tool_call_id: message.tool_calls[0].id, content: 'rain' };
    await completions.create({ model: 'v/m', messages: [...user('Hi'), message, result] });
    return Object.keys(message);
  },

  async keys() {
    const known = new OpenAI({ ...options, apiKey: 'key-1' }).chat.completions;
    return {
      wrong: await failure(completions.create(asked('mock/echo'))),
      right: (await known.create(asked('mock/echo'))).choices[0].message.content,
      other: await failure(known.create(asked('mock/tools'))),
    };
  },

  async environment() {
    return (await new OpenAI().chat.completions.create(asked('mock/echo'))).choices[0].message.content;
  },

  // -- of a vendor that plays a script: `v/m`

  async retried() {
    const began = Date.now();
    const answer = await new OpenAI({ ...options, maxRetries: 2 }).chat.completions.create(asked('v/m'));
    return { text: answer.choices[0].message.content, milliseconds: Date.now() - began };
  },

  async notRetried() {
    return await failure(new OpenAI({ ...options, maxRetries: 2 }).chat.completions.create(asked('v/m')));
  },

  async timeout() {
    return await staying(await failure(new OpenAI({ ...options, timeout: 300 }).chat.completions.create(asked('v/m'))));
  },

  async impatient() {
    let text = '';
    const hasty = new OpenAI({ ...options, timeout: 600 }).chat.completions;
    for await (const chunk of await hasty.create({ ...asked('v/m'), stream: true })) text += chunk.choices[0]?.delta.content ?? '';
    return text;
  },

  async aborted() {
    const controller = new AbortController();
    const stream = await completions.create({ ...asked('v/m'), stream: true }, { signal: controller.signal });
    let text = '';
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      if (text) controller.abort();
    }
    return await staying({ text });
  },

  async abortedWhole() {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 300);
    return await staying(await failure(completions.create(asked('v/m'), { signal: controller.signal })));
  },

  async left() {
    let text = '';
    for await (const chunk of await completions.create({ ...asked('v/m'), stream: true })) {
      text += chunk.choices[0]?.delta.content ?? '';
      if (text) break;
    }
    return await staying({ text });
  },

  async extra() {
    const content = [
      { type: 'text', text: 'Look.' },
      { type: 'image_url', image_url: { url: 'data:image/png;base64,iVBORw0KGgo=', detail: 'low' } },
    ];
    const request = { ...asked('v/m', content), chat_template_kwargs: { enable_thinking: false }, temperature: 0 };
    const answer = await completions.create(request, { headers: { 'x-deltaway-tags': 'team=a' }, query: { trace: '1' } });
    return answer.choices[0].message.content;
  },

  async conversations() {
    const { items } = client.conversations;
    const said = (text) => ({ type: 'message', role: 'user', content: text });
    const texts = async (list) => {
      const found = [];
      for await (const item of list) found.push(item.content[0].text);
      return found;
    };
    const made = await client.conversations.create({ metadata: { topic: 'tea' }, items: ['a', 'b', 'c'].map(said) });
    const headers = { 'x-deltaway-conversation': made.id };
    await completions.create(asked('mock/echo', 'd'), { headers });
    await items.create(made.id, { items: [said('e')] });
    const ascending = await texts(items.list(made.id, { order: 'asc', limit: 2 }));
    const descending = await texts(items.list(made.id, { order: 'desc', limit: 2 }));
    const last = (await items.list(made.id, { limit: 1 })).data[0];
    const one = await items.retrieve(last.id, { conversation_id: made.id });
    const left = await items.delete(last.id, { conversation_id: made.id });
    const changed = await client.conversations.update(made.id, { metadata: { topic: 'rice' } });
    const found = await client.conversations.retrieve(made.id);
    const deleted = await client.conversations.delete(made.id);
    const missing = await failure(client.conversations.retrieve(made.id));
    const ids = [one.id === last.id, left.id === made.id, found.id === made.id, deleted.id === made.id];
    return { ascending, descending, ids, topics: [made, changed, found].map((each) => each.metadata.topic), missing };
  },
};

console.log(JSON.stringify(await themes[theme]()));
