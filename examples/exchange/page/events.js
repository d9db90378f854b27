// An EventSocket is a stream of server-sent events in the shape of a WebSocket of
// the batch protocol, as far as the page needs one: the same frames come in, and
// subscribe, unsubscribe and get_subscriptions open another stream, behind the last
// event, because a stream has no way back.
//
// A client that does not have to look like a WebSocket needs none of this: an
// EventSource reconnects by itself.
export class EventSocket {
  readyState = WebSocket.CONNECTING;

  constructor(url, channels, cursor) {
    this.url = url;
    this.channels = new Set(channels);
    this.cursor = cursor;
    this.#open(false);
  }

  // asked: the client waits for the answer to get_subscriptions.
  #open(asked) {
    const url = new URL(this.url);
    url.searchParams.set("batch", 1);
    url.searchParams.set("channels", [...this.channels]);
    if (this.cursor) url.searchParams.set("cursor", this.cursor);
    const source = this.source = new EventSource(url);
    const say = (e, action) => {
      if (source !== this.source) return;
      this.cursor = e.lastEventId || this.cursor;
      this.onmessage?.({ data: JSON.stringify({ action, cursor: e.lastEventId, ...JSON.parse(e.data) }) });
    };
    source.onmessage = (e) => say(e);
    for (const action of ["reset", "live", "heartbeat"]) source.addEventListener(action, (e) => say(e, action));
    source.addEventListener("welcome", (e) => {
      this.readyState = WebSocket.OPEN;
      say(e, asked ? "subscriptions_response" : "welcome");
    });
    source.addEventListener("close", (e) => this.#end(JSON.parse(e.data).code));
    source.onerror = () => { if (source === this.source) this.#end(1006); };
  }

  send(text) {
    const { action, channels } = JSON.parse(text);
    switch (action) {
      case "subscribe": channels.forEach((c) => this.channels.add(c)); break;
      case "unsubscribe": channels.forEach((c) => this.channels.delete(c)); break;
      case "get_subscriptions": this.source.close(); this.#open(true); break;
    }
  }

  close() { this.#end(1000); }

  // The page decides whether and when to come back.
  #end(code) {
    this.source.close();
    if (this.readyState === WebSocket.CLOSED) return;
    this.readyState = WebSocket.CLOSED;
    this.onclose?.({ code });
  }
}
