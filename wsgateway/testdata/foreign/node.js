// The WebSocket of the package ws, or with the argument "undici" the one that
// Node has built in, which is undici's. Orders come from stdin, a line each.
import { createInterface } from 'node:readline'
import { obey } from './obey.js'

const headers = user => (user ? { Authorization: `Bearer ${user}` } : {})
const connect = {
  async ws() {
    const { WebSocket } = await import('ws')
    return (url, { protocols, user }) => new WebSocket(url, protocols, { headers: headers(user) })
  },
  async undici() {
    return (url, { protocols, user }) => new WebSocket(url, { protocols, headers: headers(user) })
  },
}
const order = obey(await connect[process.argv[2]](), e => console.log(JSON.stringify(e)))
createInterface({ input: process.stdin }).on('line', line => order(JSON.parse(line)))
