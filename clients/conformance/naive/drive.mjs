// The driver of the naive client, for Node and for a page: see README.md.
import { Client } from './client.mjs'

const pause = ms => new Promise(resolve => setTimeout(resolve, ms))

export async function drive(read, tell) {
  const o = await read()
  const credentials = o.credentials ?? [{}]
  let asked = 0
  let taken = 0
  let stopped
  const end = new Promise(resolve => (stopped = resolve))
  const client = new Client({
    url: o.url,
    channels: o.channels,
    cursor: o.cursor,
    backoffBase: o.backoff_base_ms,
    backoffMax: o.backoff_max_ms,
    async credentials(why) {
      tell({ event: 'credentials', why })
      const c = credentials[Math.min(asked++, credentials.length - 1)]
      if (c === null) throw new Error('no credentials')
      return c
    },
    async snapshot(reason) {
      tell({ event: 'snapshot', reason })
      if (o.snapshot_ms) await pause(o.snapshot_ms)
      const body = o.snapshot_url && (await (await fetch(o.snapshot_url)).json())
      tell({ event: 'snapshot_done', body })
    },
    async onNotifications(batch) {
      for (const n of batch) {
        if (o.handler_ms) await pause(o.handler_ms)
        if (++taken === o.handler_throws_at) throw new Error('the handler throws')
        tell({ event: 'notification', message_id: n.message_id, type: n.message_type, timestamp: String(n.timestamp), raw: n.payload })
      }
    },
    onCursor: cursor => tell({ event: 'cursor', cursor }),
    onState: ({ retry, ...s }) => tell({ event: 'state', ...s, retry_ms: retry }),
    onStopped: s => stopped(s),
  })
  client.connect()
  const commands = async () => {
    for (let c; (c = await read()) && c.do !== 'stop'; ) client[c.do](c.channels)
    client.close()
  }
  commands()
  tell({ event: 'stopped', ...(await end) })
}
