// Parses the AsyncAPI documents that it is given the names of, and prints what the
// parser has to say about each, a line of JSON for each remark: severity 0 is an
// error, 1 a warning, 2 a hint.
import { Parser } from "@asyncapi/parser";
import { readFileSync } from "node:fs";

for (const file of process.argv.slice(2)) {
  const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"));
  const remarks = diagnostics.map((d) => ({ severity: d.severity, code: String(d.code), message: d.message, path: d.path.join(".") }));
  console.log(JSON.stringify({ file, operations: document ? document.allOperations().length : 0, remarks }));
}
