// The client that everybody writes first. It is no caricature: it parses, it
// reconnects with a back-off, it says its cursor, it knows every frame of the
// protocol. What it gets wrong is what nobody thinks of at first.
export class Client {
  constructor(options) {
    this.options = options
    this.cursor = options.cursor
    this.channels = options.channels
    this.delay = options.backoffBase
    this.why = 'start'
    this.commands = 0
  }

  async connect() {
    this.state('connecting')
    const url = new URL(this.options.url)
    if (this.cursor) url.searchParams.set('cursor', this.cursor)
    if (this.channels) url.searchParams.set('channels', this.channels)
    let ticket
    try {
      ticket = (await this.options.credentials(this.why))?.ticket
    } catch {
      return this.ended('credentials', 0)
    }
    if (this.stopped) return
    if (ticket) url.searchParams.set('ticket', ticket)

    this.socket = new WebSocket(url, 'notification.batch.v1')
    this.socket.onopen = () => {
      this.delay = this.options.backoffBase
    }
    this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data))
    this.socket.onerror = () => this.socket.onclose({ code: 1006 }) // not every WebSocket tells of a close if it was never open
    this.socket.onclose = ({ code }) => {
      if (this.stopped) return
      this.socket.onclose = this.socket.onerror = null
      this.options.onState({ state: 'waiting', reason: code === 1006 ? 'network' : 'server', code, retry: this.delay })
      this.timer = setTimeout(() => this.connect(), this.delay)
      this.why = code === 4401 ? 'refused' : 'start'
      this.delay = Math.min(this.delay * 2, this.options.backoffMax)
    }
  }

  receive(frame) {
    switch (frame.action) {
      case undefined:
        this.options.onNotifications(frame.notifications)
        this.moveTo(frame.cursor)
        break
      case 'welcome':
        this.state('replaying')
        this.moveTo(frame.cursor)
        if (!this.started && !frame.resumed) this.options.snapshot('start')
        this.started = true
        break
      case 'reset':
        this.options.snapshot('cursor_gone')
        break
      case 'live':
        this.state('live')
        break
      case 'heartbeat':
        this.moveTo(frame.cursor)
        break
      case 'expiring':
        this.options.credentials('expiring').then(({ token }) => this.send({ action: 'authenticate', token }))
        break
    }
  }

  moveTo(cursor) {
    this.cursor = cursor
    this.options.onCursor(cursor)
  }

  state(state) {
    this.options.onState({ state })
  }

  send(command) {
    this.socket.send(JSON.stringify({ id: ++this.commands, ...command }))
  }

  subscribe(channels) {
    this.channels = [...new Set([...(this.channels ?? []), ...channels])]
    this.send({ action: 'subscribe', channels })
  }

  unsubscribe(channels) {
    const all = ['trade', 'account', 'position', 'risk', 'system']
    this.channels = (this.channels ?? all).filter(c => !channels.includes(c))
    this.send({ action: 'unsubscribe', channels })
  }

  close() {
    this.ended('closed', 1000)
    this.socket?.close(1000)
  }

  ended(reason, code) {
    this.stopped = true
    clearTimeout(this.timer)
    this.options.onStopped({ reason, code, cursor: this.cursor })
  }
}
