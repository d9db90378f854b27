// The real server, in a process of its own: testdata/server, which is Go. Whoever
// has no Go has no such tests.
import { execFileSync, spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect as connectTo, createServer as createListener, type AddressInfo, type Server as Listener, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));

/** Why there is no server, if so. */
export const noServer: string | undefined = (() => {
  try {
    execFileSync("go", ["version"]);
  } catch {
    return "there is no Go here";
  }
  return undefined;
})();

if (noServer) console.warn(`skipped: tests with the real server: ${noServer}`);

/** Builds the server; remove deletes it. */
export function build(): { program: string; remove: () => void } {
  const dir = mkdtempSync(join(tmpdir(), "server"));
  const program = join(dir, "server");
  execFileSync("go", ["build", "-o", program, "."], { cwd: join(root, "testdata/server"), env: { ...process.env, GOWORK: "off" }, stdio: "pipe" });
  return { program, remove: () => rmSync(dir, { recursive: true, force: true }) };
}

export class Server {
  private constructor(private readonly child: ChildProcessWithoutNullStreams, readonly host: string) {}

  static async start(program: string): Promise<Server> {
    const child = spawn(program, ["-addr", "127.0.0.1:0", "-files", root]);
    child.stderr.pipe(process.stderr);
    const first = once(createInterface({ input: child.stdout }), "line");
    const failed = once(child, "exit").then(() => { throw new Error("the server could not listen"); });
    const [line] = await Promise.race([first, failed]) as [string];
    failed.catch(() => {});
    return new Server(child, line);
  }

  get ws(): string {
    return `ws://${this.host}/notifications`;
  }

  async post(path: string, query: Record<string, string | number>): Promise<string> {
    const answer = await fetch(`http://${this.host}/${path}?${new URLSearchParams(query as never)}`, { method: "POST" });
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    return answer.text();
  }

  publish(user: string, from: number, to: number, channel = "trade"): Promise<string> {
    return this.post("publish", { user, from, to, channel });
  }

  cut(): Promise<string> {
    return this.post("cut", {});
  }

  async sessions(user: string): Promise<string[]> {
    const answer = await fetch(`http://${this.host}/sessions?user=${user}`);
    return (await answer.text()).split("\n").filter(Boolean);
  }

  /** Goes down in order. */
  async shutdown(): Promise<void> {
    const gone = once(this.child, "exit");
    this.child.stdin.end();
    await gone;
  }

  /** Does not. */
  async kill(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = once(this.child, "exit");
    this.child.kill("SIGKILL");
    await gone;
  }
}

/** An address that stays the same while servers come and go: no port is used twice, for
 *  another program might have it by then. Where there is no server, it hangs up. */
export class Front {
  #sockets = new Set<Socket>();

  private constructor(private readonly listener: Listener, public server: Server | undefined) {
    listener.on("connection", (socket) => {
      this.#keep(socket);
      if (!this.server) return void socket.destroy();
      const [host, port] = this.server.host.split(":");
      const there = this.#keep(connectTo(Number(port), host));
      socket.pipe(there).pipe(socket);
      socket.on("close", () => there.destroy());
      there.on("close", () => socket.destroySoon());
    });
  }

  static async of(server: Server): Promise<Front> {
    const listener = createListener().listen(0, "127.0.0.1");
    await once(listener, "listening");
    return new Front(listener, server);
  }

  get ws(): string {
    return `ws://127.0.0.1:${(this.listener.address() as AddressInfo).port}/notifications`;
  }

  close(): void {
    this.listener.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #keep(socket: Socket): Socket {
    this.#sockets.add(socket);
    return socket.on("error", () => {}).on("close", () => this.#sockets.delete(socket)); // an error is followed by a close
  }
}

/** What numbered of the server makes of a number. */
export const timestampOf = (k: number): bigint => 1_700_000_000_000_000_001n + 1_000_003n * BigInt(k);

/** Waits until something holds. */
export async function until(holds: () => unknown, what: string): Promise<void> {
  for (let i = 0; !(await holds()); i++) {
    if (i > 25_000) throw new Error(`waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
