// An HTTP handler in JavaScript, as it is written for any host: a listener for fetch events.

const started = { requests: 0 };

addEventListener('fetch', (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const { pathname, searchParams } = new URL(request.url);
  started.requests += 1;
  switch (pathname.split('/').pop()) {
    case 'echo':
      return new Response(request.body, { headers: { 'x-method': request.method } });
    case 'stream':
      return new Response(numbers(Number(searchParams.get('n') ?? 3)));
    case 'print':
      console.log('a line from JavaScript');
      return new Response('printed\n');
    case 'spin':
      for (;;);
    case 'throw':
      throw new Error('this handler always throws');
    case 'count':
      return new Response(String(started.requests));
    default:
      return Response.json({ hello: 'JavaScript', path: pathname, user: request.headers.get('x-user') });
  }
}

/** One number after the other, with time between them. */
function numbers(n) {
  let next = 1;
  return new ReadableStream({
    async pull(controller) {
      if (next > n) return controller.close();
      await new Promise((resolve) => setTimeout(resolve, 10));
      controller.enqueue(new TextEncoder().encode(`${next++}\n`));
    },
  });
}
