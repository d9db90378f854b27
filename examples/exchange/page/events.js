// An EventSocket is a stream of server-sent events in the shape of the WebSocket that
// the client asks for: the same frames come in, and subscribe and unsubscribe open
// another stream, behind the last event, because a stream has no way back.
//
// A page that does not have to do both needs none of this: an EventSource reconnects
// by itself.
export class EventSocket extends EventTarget {
  protocol = "";
  #url;
  #source;
  #channels;
  #asked = []; // IDs of commands that the next welcome answers
  #ended = false;

  constructor(url, [protocol]) {
    super();
    this.#url = new URL(url);
    this.#url.protocol = this.#url.protocol.replace("ws", "http");
    this.#url.searchParams.set("batch", 1);
    this.#channels = new Set(this.#url.searchParams.get("channels").split(","));
    this.#open((data) => {
      this.protocol = protocol;
      this.dispatchEvent(new Event("open"));
      this.#say({ action: "welcome" }, data);
    }, (data) => this.#say({ action: "reset" }, data));
  }

  #open(welcome, reset) {
    const source = this.#source = new EventSource(this.#url);
    const on = (type, act) => source.addEventListener(type, (e) => {
      if (source !== this.#source) return;
      if (e.lastEventId) this.#url.searchParams.set("cursor", e.lastEventId);
      act(e.data, e.lastEventId);
    });
    on("welcome", welcome);
    on("reset", reset);
    on("message", (data) => this.#say({}, data));
    on("live", (data) => this.#say({ action: "live" }, data));
    on("heartbeat", (data, cursor) => this.#say({ action: "heartbeat", cursor }, data));
    on("close", (data) => this.#end(JSON.parse(data).code));
    on("error", () => this.#end(1006));
  }

  // The data stays text: its numbers are read by the client.
  #say(fields, data) {
    const own = JSON.stringify(fields).slice(1, -1), theirs = data.slice(1, -1);
    this.dispatchEvent(new MessageEvent("message", { data: `{${own}${own && theirs && ","}${theirs}}` }));
  }

  send(text) {
    const { action, id, channels } = JSON.parse(text);
    for (const c of channels) this.#channels[action === "subscribe" ? "add" : "delete"](c);
    this.#asked.push(id);
    this.#url.searchParams.set("channels", [...this.#channels]);
    this.#source.close();
    this.#open((data) => {
      for (const id of this.#asked.splice(0)) this.#say({ action: "ok", id }, data);
    }, () => this.#end(4100)); // what came between the two streams is lost
  }

  close() { this.#end(1000); }

  // Whether and when another one is made is up to the client.
  #end(code) {
    this.#source.close();
    if (this.#ended) return;
    this.#ended = true;
    this.dispatchEvent(new CloseEvent("close", { code }));
  }
}
