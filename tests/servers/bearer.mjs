// Loaded into an official program before it begins (`node --import`), when that program has no way of its own to send a header:
// every HTTP request that it makes carries `Authorization: Bearer $CUSTODY_BEARER`, unless it has one. Nothing else of a request
// is touched, and nothing stands between the program and the endpoint that it speaks to.

import { subscribe } from 'node:diagnostics_channel';

const credential = `Bearer ${process.env.CUSTODY_BEARER}`;
const names = (headers) => headers.filter((_, at) => at % 2 === 0).map((name) => `${name}`.toLowerCase());

// `fetch` and `undici.request`.
subscribe('undici:request:create', ({ request }) => {
  const headers = Array.isArray(request.headers) ? names(request.headers) : `${request.headers}`.toLowerCase().split(/[\r\n:]+/);
  if (!headers.includes('authorization')) request.addHeader('authorization', credential);
});
// `http.request`.
subscribe('http.client.request.created', ({ request }) => {
  if (!request.hasHeader('authorization')) request.setHeader('authorization', credential);
});
