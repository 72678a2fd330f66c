// Outcomes of node:test as JSON lines, for support.py.
export default async function* reporter(events) {
  for await (const { type, data } of events) {
    if (type === "test:pass" || type === "test:fail") {
      const cause = data.details.error?.cause ?? data.details.error;
      const error = cause === undefined ? undefined : String(cause?.stack ?? cause);
      yield `${JSON.stringify({ title: data.name, passed: type === "test:pass", error })}\n`;
    }
  }
}
