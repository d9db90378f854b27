import { connect, type Options, type Stopped } from "../src/notification-client.ts";
export declare class ScriptedSocket extends EventTarget {
    readonly protocols: string[];
    readonly options?: {
        headers: Record<string, string>;
    } | undefined;
    static made: ScriptedSocket[];
    protocol: string;
    sent: any[];
    closedWith: number | undefined;
    readonly url: URL;
    constructor(url: string, protocols: string[], options?: {
        headers: Record<string, string>;
    } | undefined);
    get query(): Record<string, string>;
    send(text: string): void;
    close(code?: number): void;
    open(protocol?: string): this;
    say(frame: object | string): this;
    welcome(more?: object): this;
    live(): this;
    batch(cursor: string, ...ids: number[]): this;
    end(code: number): this;
    refuse(status: number): this;
}
export declare function notification(id: number): {
    message_id: string;
    message_type: string;
    user_id: string;
    priority: number;
    timestamp: number;
    source: string;
    payload: {
        type: string;
    };
};
export interface Play {
    client: ReturnType<typeof connect>;
    /** What the callbacks were called with, in order: "state live", "got n-1", "cursor c1", … */
    log: string[];
    /** What log has got since the last call. */
    news(): string[];
    /** The last socket that was made. */
    socket(): ScriptedSocket;
    sockets: ScriptedSocket[];
    stopped: Stopped | undefined;
}
/** Begins a client whose waits have no jitter: half of the most. Callbacks that are not
 *  given are there all the same, but credentials, and a snapshot that is undefined. */
export declare function play(options?: Partial<Options>): Promise<Play>;
/** Lets everything happen that waits for nothing but its turn. */
export declare const settle: () => Promise<void>;
export declare const pass: (ms: number) => Promise<void>;
/** A promise that the test resolves. */
export declare function gate<T = void>(): {
    promise: Promise<T>;
    open: (value: T) => void;
    fail: (error: unknown) => void;
};
