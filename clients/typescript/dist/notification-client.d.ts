import type { AnyNotification, Channel } from "./notifications.js";
export * from "./notifications.js";
export interface Options {
    /** Where the server is: ws or wss, http or https, in a page also relative to it.
     *  A query that it has is kept. */
    url: string | URL;
    /** Deals with what has come, in the order of the stream. It is awaited before the
     *  next call. If it throws, the client stops with the cursor before this batch.
     *  cursor is where the stream is afterwards: who stores it together with what the
     *  notifications change, in one transaction, has each of them exactly once. */
    onNotifications: (notifications: AnyNotification[], cursor: string) => unknown;
    /** Loads the state that the notifications build on. It is awaited, and what comes
     *  meanwhile is handed over afterwards, so nothing falls between the two. If it
     *  throws, the client stops. */
    snapshot?: ((reason: SnapshotReason) => unknown) | undefined;
    /** Gives what the next connection is authenticated with; nothing if that is a
     *  cookie. If it throws, the client stops: for a failure that may pass, return
     *  nothing instead. */
    credentials?: ((why: CredentialsReason) => Credentials | Promise<Credentials>) | undefined;
    /** Absent: all. Empty: none. */
    channels?: readonly Channel[] | undefined;
    /** Where to go on: what onCursor was last called with. */
    cursor?: string | null | undefined;
    /** Stores the cursor. It is awaited. Called after onNotifications has returned,
     *  after a snapshot, and with the empty string when there is nothing to go on
     *  from. If it throws, the client stops. */
    onCursor?: ((cursor: string) => unknown) | undefined;
    /** Called once for each change of state. */
    onState?: ((state: State) => void) | undefined;
    /** In milliseconds. A wait is drawn from 0 to base × 2ⁿ, at most max, after n others
     *  without a connection of at least stable between them. 500, 30,000 and 60,000
     *  if absent. */
    backoff?: {
        base?: number;
        max?: number;
        stable?: number;
    } | undefined;
    /** After how many heartbeats without a word a connection is given up; 2.5 if absent. */
    watchdogFactor?: number | undefined;
    /** What makes connections, where there is no global WebSocket: that of the package
     *  ws, for example. */
    WebSocket?: WebSocketConstructor | undefined;
}
/** - start: a connection is about to be made
 *  - refused: the server did not take the ones before
 *  - expiring: those of the connection end within a minute */
export type CredentialsReason = "start" | "refused" | "expiring";
/** A ticket goes into the URL, so it should hold once and for seconds. A token goes
 *  into the header Authorization, which a browser cannot set: there it only
 *  extends a connection. */
export type Credentials = {
    ticket?: string;
    token?: string;
} | null | undefined | void;
/** - start: the first connection
 *  - cursor_gone: the server cannot go on from the cursor
 *  - gap: notifications may have been lost */
export type SnapshotReason = "start" | "cursor_gone" | "gap";
/** - connecting: until the server's welcome
 *  - replaying: what was missed is handed over
 *  - live: what is handed over is new */
export type State = {
    state: "connecting";
} | {
    state: "replaying";
} | {
    state: "live";
} | Waiting | Stopped;
/** Why there is no connection.
 *  - closed: close was called
 *  - network: it broke, or never came to be
 *  - watchdog: nothing was heard for too long
 *  - overflow: more came than was dealt with, and no more can be held
 *  - server: the server closed it, and the code tells why
 *  - handshake: the server refused it with an HTTP status (a browser is not told)
 *  - credentials: the callback threw; or, of a connection, they end soon
 *  - handler: onNotifications, snapshot or onCursor threw
 *  - protocol: the server sent what is not notification.batch.v1 */
export type Reason = "closed" | "network" | "watchdog" | "overflow" | "server" | "handshake" | "credentials" | "handler" | "protocol";
/** The connection has gone, and another one will be made. */
export interface Waiting {
    state: "waiting";
    reason: Reason;
    /** The code of the close frame; 1006 if there was none; of a handshake the code that
     *  means the same, or 0; 0 if it was the client that gave up. */
    code: number;
    /** When that will be, in milliseconds from now. */
    retryMs: number;
}
/** The end. */
export interface Stopped {
    state: "stopped";
    reason: Reason;
    /** As above; 1000 if close was called. */
    code: number;
    /** Behind what was dealt with. */
    cursor: string;
    /** What a callback threw. */
    error?: unknown;
}
export interface Client {
    readonly state: State;
    /** Behind what onNotifications has dealt with; empty if there is nothing to go on from. */
    readonly cursor: string;
    /** Resolves at the end, whatever it is; never rejects. */
    readonly stopped: Promise<Stopped>;
    /** Narrows a client of all channels to these; later adds to them. Resolves with the
     *  channels as they are when the server has said so: what was on its way still
     *  comes. Rejects if the server does not know them, and at the end. A later
     *  connection begins with the channels as they were. */
    subscribe(...channels: Channel[]): Promise<Channel[]>;
    /** Takes these away; otherwise like subscribe. */
    unsubscribe(...channels: Channel[]): Promise<Channel[]>;
    /** Stops, and resolves when the callback that runs has returned: so do not await it
     *  there. */
    close(): Promise<Stopped>;
}
/** What the client needs of a WebSocket. */
export interface WebSocketLike {
    readonly protocol: string;
    send(text: string): void;
    close(code?: number): void;
    addEventListener(type: "open" | "message" | "close" | "error", listener: (event: any) => void): void;
}
export type WebSocketConstructor = new (url: string, protocols: string[], options?: any) => WebSocketLike;
/** Begins to receive. Throws TypeError if an option cannot be used. */
export declare function connect(options: Options): Client;
