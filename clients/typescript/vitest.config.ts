import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    // For machines that are busy: whoever waits, waits for an event.
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
});
