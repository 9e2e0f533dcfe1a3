// SPDX-License-Identifier: MPL-2.0

// Package simulator is DingTalk's token API on loopback, and two APIs that a token opens, for tests
// and for trying out.
//
// POST /v1.0/oauth2/accessToken answers as DingTalk does: the same token again within its lifetime,
// its validity extended by every call to a full lifetime, and a new token after that. The error
// bodies are DingTalk's own, and every known way of failing can be switched on for one app or for
// all of them.
//
// POST /v1.0/oauth2/{corpId}/token, DingTalk's unified call, does the same for an app in one of the
// organizations in which it runs: [DefaultCorpID], unless it was given others. An app has a token
// of its own in each of them, and another one by the older call. Faults are set for the app and hit
// both calls.
//
// GET /v1.0/microApp/allInnerApps with a token in the header x-acs-dingtalk-access-token answers
// with a list of one app. A token that has expired or was never given is refused as DingTalk
// refuses it: 400 InvalidAuthentication. No fault applies here.
//
// POST /topapi/v2/department/listsub?access_token=… is an API of DingTalk's old host, and answers
// with a list of one department. Here the same tokens are refused with status 200, errcode 88 and
// sub_code 40014.
//
// # Control over HTTP
//
// The methods of [Server] are also an HTTP API below /simulator/. Bodies are JSON. A change is
// answered 204, a question 200, bad input 400 with {"error":"…"}, an operation that does not exist
// 404 with the same. An app key that holds a slash is written with %2F. No call of this API is
// counted as a token request.
//
//	PUT    /simulator/faults/<app key or *>    {"kind":"hang"}              SetFault; the fields are below
//	DELETE /simulator/faults/<app key or *>                                ClearFault: that fault alone
//	DELETE /simulator/faults                                               ClearFaults: all of them
//	PUT    /simulator/apps/<app key>           {"secret":"…"}              SetApp
//	PUT    /simulator/apps/<app key>           {"secret":"…","corp_ids":["…"]}
//	                                                                       SetApp with organizations
//	DELETE /simulator/apps/<app key>                                       RemoveApp
//	PUT    /simulator/lifetime                 {"lifetime":"2h"}           SetTokenLifetime; at least 1s
//	PUT    /simulator/rotate/<app key>         {"on":true}                 RotateTokens
//	POST   /simulator/expire/<app key>                                     ExpireTokens
//	GET    /simulator/requests/<app key or *>  -> {"requests":3}           Requests
//	GET    /simulator/requests/<app key or *>/<corpId>
//	                                           -> {"requests":3}           RequestsIn
//	GET    /simulator/calls/<app key or *>     -> {"accepted":3,"refused":0}
//	                                                                       Calls
//	POST   /simulator/life                     {"token":"…"}
//	                                           -> {"known":true,"seconds":7199}   LifeLeft, in whole seconds
//
// With a token of the unified call, the response to life also has "corp_id", its organization.
//
// A fault has the fields of [Fault], and "delay" and "interval" are Go durations as text:
//
//	{"kind":"error", "status":400, "code":"…", "message":"…", "retry_after":"30", "delay":"1.5s",
//	 "location":"http://127.0.0.2:1/", "times":1, "expire_in":-1, "token":"…",
//	 "part":"secret", "encoding":"json-all,json",
//	 "raw":"HTTP/1.1 …", "repeat":"…", "interval":"1s"}
//
// "expire_in" is any JSON value and is put into the reply as it is; without it the reply has no
// expireIn.
//
// For example, to leave the next request of an app without a reply:
//
//	curl -X PUT -d '{"kind":"hang","times":1}' http://127.0.0.1:8123/simulator/faults/dingdemo
//
// To repeat the request's body in the error, each character as \uXXXX after the JSON is decoded:
//
//	curl -X PUT -d '{"kind":"echo-request","encoding":"json-all,json"}' \
//	  http://127.0.0.1:8123/simulator/faults/dingdemo
//
// To send any bytes in place of a response, and keep the connection open:
//
//	curl -X PUT -d '{"kind":"raw","raw":"HTTP/1.1 199 Odd\r\n\r\n"}' \
//	  http://127.0.0.1:8123/simulator/faults/dingdemo
//
// # A hostile host
//
// A host that was taken over need not keep to HTTP. The kinds of [Fault] for that are:
//
//	echo-request          the request, its secret or the token in code, message and requestid;
//	                      in every form of [Encodings]
//	token                 a good response with any text for a token
//	surplus               a good response, and after it the token and the request in clear
//	status-099            a good response with a status below 100
//	switching-protocols   101, then silence on an open connection
//	informational-flood   103 without end
//	endless-headers, endless-body, endless-drip, endless-gzip, endless-gzip-empty
//	                      200 and something without end
//	raw                   any bytes, once and then without end
//	http2-goaway, http2-silent, http2-flood
//	                      over TLS, for a client that takes HTTP/2; see [Server.StartTLS]
//
// The connections end with the client or with [Server.Close].
package simulator
