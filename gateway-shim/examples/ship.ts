// Ships one record through `gateway-shim relay`: docs/SHIPPING.md walks through it.
//
//     npm ci
//     node ship.ts 127.0.0.1:7501
//     node ship.ts unix:/run/custody/relay.sock spool/relay.secret
//
// Node 22.18 or later runs TypeScript as it is.

import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";

const protos = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../proto");
const definition = loader.loadSync("custody/v1/relay.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: String,
  enums: String,
});
const api = grpc.loadPackageDefinition(definition) as any;

const target = process.argv[2] ?? "127.0.0.1:7501";
const relay = new api.custody.v1.Relay(target, grpc.credentials.createInsecure());

// Over a Unix socket the relay asks for what stands in a file of its folder, which programs in a sandbox cannot read.
const shows = new grpc.Metadata();
if (process.argv[3]) shows.set("authorization", `Bearer ${fs.readFileSync(process.argv[3], "utf8").trim()}`);

const request = {
  record: {
    call: {
      phase: "PHASE_COMPLETE",
      mode: "MODE_RELAXED",
      client_name: "ship.ts",
      client_version: "1",
      server: "example",
      tool: "echo",
      method: "tools/call",
      decision: "DECISION_ALLOWED",
      rule: "example",
      started_at: String(Date.now() * 1000),
      duration_us: "1500",
      outcome: "OUTCOME_OK",
      request_bytes: "120",
      response_bytes: "80",
    },
  },
};

type Put = { gateway: Buffer; epoch: Buffer; number: string };

function print(put: Put): void {
  console.log(`${put.gateway.toString("hex")}/${put.epoch.toString("hex")}/${put.number}`);
}

function fail(error: grpc.ServiceError): never {
  const again = [grpc.status.RESOURCE_EXHAUSTED, grpc.status.UNAVAILABLE].includes(error.code);
  console.error(`${grpc.status[error.code]}: ${error.details} (${again ? "try again later" : "do not try again"})`);
  process.exit(1);
}

relay.Put(request, shows, { deadline: Date.now() + 10_000 }, (error: grpc.ServiceError | null, put: Put) => {
  if (error) fail(error);
  print(put);
  // Many records go over one stream; their names come in the same order.
  const stream = relay.Ship(shows, { deadline: Date.now() + 10_000 });
  stream.on("data", print);
  stream.on("error", fail);
  stream.on("end", () => relay.close());
  stream.write(request);
  stream.write(request);
  stream.end();
});
