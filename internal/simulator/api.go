// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"log/slog"
	"net/http"
)

// This file is two APIs that an access token opens, so that a client can be tried whole: from the
// token to the call that it is for. One is of the host that gives the token, the other of DingTalk's
// old host, oapi.dingtalk.com, which has its own ways.
//
// What is known of it. The path, that it needs no parameter, and the fields of its reply are in
// DingTalk's documentation. The reply to a token that is not valid, 400 InvalidAuthentication with
// this message, was seen at this very path; the documentation says of the code that the token has
// expired or does not exist. The reply to a request without the header was seen at another path of
// the same gateway.
//
// What is assumed. That a token which has not expired is taken although the app was given a newer
// one since, and that a wrong method is answered as by the token API.

const (
	// AppsPath lists the organization's own apps to whoever has the access token of one.
	AppsPath = "/v1.0/microApp/allInnerApps"

	// DepartmentsPath lists the organization's departments, on the old host.
	DepartmentsPath = "/topapi/v2/department/listsub"

	// TokenHeader is where DingTalk's APIs look for the access token, and nowhere else, but for
	// the old host.
	TokenHeader = "x-acs-dingtalk-access-token"

	invalidTokenMessage = "不合法的access_token"
)

// appList is the reply of AppsPath. Of the documented fields it has the few that every app has.
type appList struct {
	AppList []listedApp `json:"appList"`
}

type listedApp struct {
	AgentID     int64  `json:"agentId"`
	Name        string `json:"name"`
	Desc        string `json:"desc"`
	AppID       int64  `json:"appId"` // 0 for an organization's own app
	AppStatus   int    `json:"appStatus"`
	DevelopType int    `json:"developType"`
}

// departmentList is the reply of DepartmentsPath, with the fields that every department has.
type departmentList struct {
	ErrCode   int                `json:"errcode"`
	ErrMsg    string             `json:"errmsg"`
	Result    []listedDepartment `json:"result"`
	RequestID string             `json:"request_id"`
}

type listedDepartment struct {
	DeptID   int64  `json:"dept_id"`
	Name     string `json:"name"`
	ParentID int64  `json:"parent_id"`
}

// oldRefusal is what the old host answers to a token that is not valid.
type oldRefusal struct {
	ErrCode   int    `json:"errcode"`
	SubCode   string `json:"sub_code"`
	SubMsg    string `json:"sub_msg"`
	ErrMsg    string `json:"errmsg"`
	RequestID string `json:"request_id"`
}

// apiCalls counts the calls of AppsPath and DepartmentsPath by whether their token was good.
type apiCalls struct{ accepted, refused int }

func (s *Server) serveApps(w http.ResponseWriter, r *http.Request) {
	requestID := newRequestID()
	token := r.Header.Get(TokenHeader)
	appKey, live := s.Owner(token)
	desc := "the app that the token belongs to"
	if corpID := s.Organization(token); corpID != "" {
		desc += ", in " + corpID
	}
	var a reply
	switch {
	case r.Method != http.MethodGet:
		a = wrongMethod(requestID)
	case token == "":
		a = jsonReply(http.StatusBadRequest, envelope{
			RequestID: requestID,
			Code:      "AuthenticationFailed.MissingParameter",
			Message:   "缺少参数：" + TokenHeader,
		})
	case !live:
		a = jsonReply(http.StatusBadRequest, envelope{
			RequestID: requestID,
			Code:      "InvalidAuthentication",
			Message:   invalidTokenMessage,
		})
	default:
		a = jsonReply(http.StatusOK, appList{[]listedApp{{
			AgentID: 1000001, Name: "simulated app", Desc: desc, AppStatus: 1,
		}}})
	}
	s.replyToCall(w, r, appKey, requestID, a, a.status == http.StatusOK)
}

func (s *Server) serveDepartments(w http.ResponseWriter, r *http.Request) {
	requestID := newRequestID()
	appKey, live := s.Owner(r.URL.Query().Get("access_token"))
	a := jsonReply(http.StatusOK, oldRefusal{
		ErrCode: 88, SubCode: "40014", SubMsg: invalidTokenMessage,
		ErrMsg: "ding talk error[subcode=40014,submsg=" + invalidTokenMessage + "]", RequestID: requestID,
	})
	if live {
		a = jsonReply(http.StatusOK, departmentList{
			ErrMsg: "ok", Result: []listedDepartment{{DeptID: 2, Name: "simulated department", ParentID: 1}},
			RequestID: requestID,
		})
	}
	s.replyToCall(w, r, appKey, requestID, a, live)
}

// replyToCall counts a call that a token was to open, logs it and answers it.
func (s *Server) replyToCall(
	w http.ResponseWriter, r *http.Request, appKey, requestID string, a reply, accepted bool,
) {
	s.countCall(appKey, accepted)
	s.logger.LogAttrs(r.Context(), slog.LevelInfo, "API call",
		slog.String("app", s.logName(appKey)), slog.Int("status", a.status), slog.String("request_id", requestID))
	send(w, a)
}

// Calls counts the calls of [AppsPath] and [DepartmentsPath] with a token of the app's: accepted with a live one, and
// refused. For [AnyApp] it counts all calls, also those with an unknown token or none.
func (s *Server) Calls(appKey string) (accepted, refused int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.calls[appKey]
	return c.accepted, c.refused
}

func (s *Server) countCall(appKey string, accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := []string{AnyApp}
	if appKey != "" {
		keys = append(keys, appKey)
	}
	for _, key := range keys {
		c := s.calls[key]
		if accepted {
			c.accepted++
		} else {
			c.refused++
		}
		s.calls[key] = c
	}
}
