// SPDX-License-Identifier: MPL-2.0

package simulator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// This file is the control API: the methods of Server over HTTP, for tests that have the simulator
// in another process and for a person with curl.

const controlPrefix = "/simulator/"

func (s *Server) newControl() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /simulator/faults/{app}", change(func(r *http.Request) error {
		var f Fault
		if err := decode(r, &f); err != nil {
			return err
		}
		if err := f.Validate(); err != nil {
			return err
		}
		s.SetFault(r.PathValue("app"), f)
		return nil
	}))
	mux.HandleFunc("DELETE /simulator/faults/{app}", change(func(r *http.Request) error {
		s.ClearFault(r.PathValue("app"))
		return nil
	}))
	mux.HandleFunc("DELETE /simulator/faults", change(func(*http.Request) error {
		s.ClearFaults()
		return nil
	}))
	mux.HandleFunc("PUT /simulator/apps/{app}", change(func(r *http.Request) error {
		var in struct {
			Secret  string   `json:"secret"`
			CorpIDs []string `json:"corp_ids"`
		}
		if err := decode(r, &in); err != nil {
			return err
		}
		if in.Secret == "" {
			return errors.New(`"secret" is missing or empty`)
		}
		if r.PathValue("app") == AnyApp {
			return fmt.Errorf("%s stands for all apps and cannot be one", AnyApp)
		}
		if in.CorpIDs != nil && len(in.CorpIDs) == 0 {
			return errors.New(`"corp_ids" is empty; leave it out to keep the app's organizations`)
		}
		if err := CheckCorpIDs(in.CorpIDs); err != nil {
			return fmt.Errorf(`"corp_ids": %w`, err)
		}
		s.SetApp(r.PathValue("app"), in.Secret, in.CorpIDs...)
		return nil
	}))
	mux.HandleFunc("DELETE /simulator/apps/{app}", change(s.knownApp(s.RemoveApp)))
	mux.HandleFunc("PUT /simulator/lifetime", change(func(r *http.Request) error {
		var in struct {
			Lifetime string `json:"lifetime"`
		}
		if err := decode(r, &in); err != nil {
			return err
		}
		d, err := time.ParseDuration(in.Lifetime)
		if err != nil || d < time.Second {
			return fmt.Errorf(`"lifetime" is %q, but must be a duration of at least 1s, such as "2h"`, in.Lifetime)
		}
		s.SetTokenLifetime(d)
		return nil
	}))
	mux.HandleFunc("PUT /simulator/rotate/{app}", change(func(r *http.Request) error {
		var in struct {
			On *bool `json:"on"`
		}
		if err := decode(r, &in); err != nil {
			return err
		}
		if in.On == nil {
			return errors.New(`"on" is missing: true or false`)
		}
		return s.knownApp(func(appKey string) { s.RotateTokens(appKey, *in.On) })(r)
	}))
	mux.HandleFunc("POST /simulator/expire/{app}", change(s.knownApp(s.ExpireTokens)))
	mux.HandleFunc("GET /simulator/requests/{app}", func(w http.ResponseWriter, r *http.Request) {
		writeRequests(w, s.Requests(r.PathValue("app")))
	})
	mux.HandleFunc("GET /simulator/requests/{app}/{corp}", func(w http.ResponseWriter, r *http.Request) {
		writeRequests(w, s.RequestsIn(r.PathValue("app"), r.PathValue("corp")))
	})
	mux.HandleFunc("GET /simulator/calls/{app}", func(w http.ResponseWriter, r *http.Request) {
		accepted, refused := s.Calls(r.PathValue("app"))
		writeJSON(w, http.StatusOK, struct {
			Accepted int `json:"accepted"`
			Refused  int `json:"refused"`
		}{accepted, refused})
	})
	mux.HandleFunc("POST /simulator/life", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Token string `json:"token"`
		}
		err := decode(r, &in)
		if err == nil && in.Token == "" {
			err = errors.New(`"token" is missing or empty`)
		}
		if err != nil {
			writeError(w, http.StatusBadRequest, err)
			return
		}
		left, known := s.LifeLeft(in.Token)
		writeJSON(w, http.StatusOK, struct {
			Known   bool   `json:"known"`
			Seconds int64  `json:"seconds"`
			CorpID  string `json:"corp_id,omitempty"`
		}{known, int64(left / time.Second), s.Organization(in.Token)})
	})
	mux.HandleFunc(controlPrefix, func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, fmt.Errorf("there is no control operation %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// change answers 204 where do succeeds.
func change(do func(*http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := do(r); err != nil {
			writeError(w, http.StatusBadRequest, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// knownApp refuses an unknown app, where a misspelt key would otherwise change nothing and succeed.
func (s *Server) knownApp(do func(appKey string)) func(*http.Request) error {
	return func(r *http.Request) error {
		appKey := r.PathValue("app")
		if !s.isApp(appKey) {
			return fmt.Errorf("there is no app %q", appKey)
		}
		do(appKey)
		return nil
	}
}

func decode(r *http.Request, v any) error {
	err := decodeStrict(io.LimitReader(r.Body, maxRequestBytes), v)
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("the body is empty, but must be a JSON object")
	case err != nil:
		return fmt.Errorf("the body is not the JSON wanted here: %w", err)
	}
	return nil
}

// decodeStrict takes one JSON value and nothing after it, and no unknown field.
func decodeStrict(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the first JSON value")
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	send(w, jsonReply(status, v))
}

func writeRequests(w http.ResponseWriter, n int) {
	writeJSON(w, http.StatusOK, struct {
		Requests int `json:"requests"`
	}{n})
}

func writeError(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, struct {
		Error string `json:"error"`
	}{err.Error()})
}
