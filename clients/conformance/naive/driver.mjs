import { createInterface } from 'node:readline'
import { drive } from './drive.mjs'

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const read = async () => {
  const { value } = await lines.next()
  return value && JSON.parse(value)
}
await drive(read, event => process.stdout.write(JSON.stringify(event) + '\n'))
process.exit(0)
