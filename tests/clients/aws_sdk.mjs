// What the AWS SDK for JavaScript finds at the metadata service, as one line of JSON.
import { createRequire } from "node:module";

const load = createRequire(process.argv.at(-1) + "/");
const { fromInstanceMetadata } = load("@aws-sdk/credential-providers");
const { MetadataService } = load("@aws-sdk/ec2-metadata-service");

const credentials = await fromInstanceMetadata({ timeout: 5000, ec2MetadataV1Disabled: true })();
const service = new MetadataService({ httpOptions: { timeout: 5000 } });
const report = {
  credentials: [credentials.accessKeyId, credentials.secretAccessKey, credentials.sessionToken],
  account: credentials.accountId ?? null,
  instanceId: await service.request("/latest/meta-data/instance-id", {}),
};
console.log(JSON.stringify(report));
