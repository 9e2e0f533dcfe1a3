// SPDX-License-Identifier: MPL-2.0

// Makes calls by DingTalk's own SDK. The calls are on standard input, as JSON, since they hold secrets; what came of
// each is printed as JSON: what the SDK returned, or the error that it threw.

const { default: OAuth2, GetAccessTokenRequest, GetTokenRequest } = require('@alicloud/dingtalk/dist/oauth2_1_0/client')
const { default: MicroApp, ListAllInnerAppsHeaders } = require('@alicloud/dingtalk/dist/micro_app_1_0/client')
const { Config } = require('@alicloud/openapi-client')
const { RuntimeOptions } = require('@alicloud/tea-util')

const calls = {
  getAccessToken: (config, { appKey, appSecret }) =>
    new OAuth2(config).getAccessToken(new GetAccessTokenRequest({ appKey, appSecret })),
  getToken: (config, { corpId, clientId, clientSecret, grantType }) =>
    new OAuth2(config).getToken(corpId, new GetTokenRequest({ clientId, clientSecret, grantType })),
  listAllInnerApps: (config, { token }) =>
    new MicroApp(config).listAllInnerAppsWithOptions(
      new ListAllInnerAppsHeaders({ xAcsDingtalkAccessToken: token }),
      new RuntimeOptions({}),
    ),
}

async function main() {
  const { host, asked } = JSON.parse(require('fs').readFileSync(0, 'utf8'))
  const results = []
  for (const { call, ...args } of asked) {
    try {
      const { statusCode, body } = await calls[call](new Config({ protocol: 'http', endpoint: host }), args)
      results.push({ status: statusCode, body })
    } catch ({ name, code, message, data }) {
      results.push({ thrown: name, code, message, status: data?.statusCode, requestId: data?.requestid })
    }
  }
  console.log(JSON.stringify(results))
}

main()
