// SPDX-License-Identifier: MPL-2.0

// Calls one of DingTalk's APIs with an access token from Vault, with DingTalk's SDK. README.md has the settings.
// Node.js 18 or later: npm ci && node app.js

const { default: Client, ListAllInnerAppsHeaders } = require('@alicloud/dingtalk/dist/micro_app_1_0/client')
const { Config } = require('@alicloud/openapi-client')
const { RuntimeOptions } = require('@alicloud/tea-util')

const env = (name, otherwise = '') => process.env[name] || otherwise
const path = (of) => `${env('DINGTALK_MOUNT', 'dingtalk')}/${of}/${env('DINGTALK_APP')}`
const api = new URL(env('DINGTALK_BASE_URL', 'https://api.dingtalk.io'))
const sdk = new Client(new Config({ protocol: api.protocol.slice(0, -1), endpoint: api.host }))
const runtime = new RuntimeOptions({ readTimeout: 60_000, connectTimeout: 60_000 })
let token, due = 0 // when to read the token again

async function vault(method, path, body) {
  const headers = { 'X-Vault-Token': env('VAULT_TOKEN'), 'X-Vault-Request': 'true' }
  const options = { method, headers, body: JSON.stringify(body), signal: AbortSignal.timeout(60_000) }
  const response = await fetch(`${env('VAULT_ADDR', 'https://127.0.0.1:8200')}/v1/${path}`, options)
  if (!response.ok) throw new Error(`Vault, ${method} ${path}: ${response.status} ${await response.text()}`)
  return response.json()
}

async function read() {
  try {
    const secret = await vault('GET', path('creds'))
    token = secret.data.access_token
    // A read in the second half of a lease extends the token. Without a lease, ttl says when to read again.
    due = performance.now() + 1000 * ((secret.lease_duration * 2) / 3 || secret.data.ttl)
    console.error(`read ${path('creds')}`)
  } catch (error) {
    if (!token) throw error
    due = performance.now() + 5000
    console.error(`going on with the current token: ${error.cause ?? error.message}`)
  }
}

// call returns the response's status and codes, and its JSON.
async function call() {
  if (env('DINGTALK_OLD_URL')) return callOld(new URL('/topapi/v2/department/listsub', env('DINGTALK_OLD_URL')))
  try {
    const headers = new ListAllInnerAppsHeaders({ xAcsDingtalkAccessToken: token })
    const { statusCode, body } = await sdk.listAllInnerAppsWithOptions(headers, runtime)
    return [`${statusCode}`, body]
  } catch (error) {
    if (!error.data) throw error
    return [`${error.data.statusCode} ${error.code}`, error.data]
  }
}

// callOld does the same on the old host, which the SDK does not support. Its status is always 200.
async function callOld(url) {
  const options = { method: 'POST', redirect: 'error', signal: AbortSignal.timeout(60_000) }
  url.searchParams.set('access_token', token)
  const response = await fetch(url, options)
  const body = await response.json()
  return [[response.status, body.errcode, body.sub_code].join(' ').trim(), body]
}

async function main() {
  for (const every = Number(env('CALL_EVERY')) * 1000; ; await new Promise((wake) => setTimeout(wake, every))) {
    if (performance.now() >= due) await read()
    let [code, body] = await call()
    if (['400 InvalidAuthentication', '200 88 40014', '200 40014'].includes(code)) {
      console.error(`DingTalk refused the token: ${code}`)
      await vault('POST', path('refresh'), { rejected_token: token })
      await read();
      [code, body] = await call()
    }
    if (!['200', '200 0'].includes(code)) throw new Error(`DingTalk: ${code}`)
    console.log(JSON.stringify(body))
    if (!every) return
  }
}

main().catch((error) => {
  console.error(`${error.message} ${error.cause ?? ''}`)
  process.exit(1)
})
