// The words of the requests, as in support.py.
export const MODEL = "trunkline-demo";
export const KEY = "right";
export const BERLIN = "You must call the weather tool for Berlin. Do not answer directly.";
export const SUNNY = { city: "Berlin", temperature_c: 21, condition: "sunny" };
// Long enough to fill several KV blocks.
export const LONG = `You are a helpful assistant. ${"Answer briefly and kindly. ".repeat(20)}`;
export const WEATHER = {
  type: "function",
  function: {
    name: "weather",
    description: "Current weather of a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string", description: "Name of the city" } },
      required: ["city"],
    },
  },
};
