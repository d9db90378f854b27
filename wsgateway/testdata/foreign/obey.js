// obey opens WebSockets as it is told, and tells what they see. An order is
// {id, open, protocols, user}, {id, say} or {id, close}; what is told is {id,
// event, text, code}, event being "open" with the subprotocol, "message" or
// "close". connect makes a WebSocket of the kind under test from an order, or a
// promise of one.
export function obey(connect, tell) {
  const sockets = new Map()
  return async ({ id, open, say, close, ...order }) => {
    // It may have been closed just now.
    if (say !== undefined) return sockets.get(id)?.send(say)
    if (close) return sockets.get(id)?.close(close)
    const socket = await connect(open, order)
    sockets.set(id, socket)
    const closed = (code, text) => sockets.delete(id) && tell({ id, event: 'close', code, text })
    socket.addEventListener('open', () => {
      tell({ id, event: 'open', text: socket.protocol })
      socket.opened = true
    })
    socket.addEventListener('message', ({ data }) => tell({ id, event: 'message', text: data }))
    socket.addEventListener('error', ({ message }) => {
      // Not every library lets a close follow if it never was open. The code
      // would be 1006 whatever the reason.
      if (!socket.opened) closed(1006, message ?? '')
    })
    socket.addEventListener('close', ({ code, reason }) => closed(code, reason))
  }
}
