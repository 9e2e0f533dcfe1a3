// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// This file is the command without the process around it: its flags, and serving until the context
// ends. No value of -app or -corp-ids is ever shown, since it may hold a secret however wrong it
// is.

func usage() string {
	return usageHead + strings.Join(simulator.FaultKinds(), "\n  ") + "\n"
}

const usageHead = `Usage: dingtalk-simulator [flags]

Serves DingTalk's token API on this machine, for trying out and for tests. The first line on stdout is the base
URL; it is printed once requests are served. Each token request is logged on stderr, without secrets. An
interrupt (Ctrl-C) or SIGTERM ends it.

Both calls for a token are served: POST ` + simulator.TokenPath + `, and the unified one,
POST /v1.0/oauth2/{corpId}/token.

A token opens two APIs: GET /v1.0/microApp/allInnerApps, by the header x-acs-dingtalk-access-token, and one of
DingTalk's old host, POST /topapi/v2/department/listsub?access_token=… These calls are logged too.

  -address host:port
        Where to listen: a loopback address. Port 0 takes a free one. (default ` + defaultAddress + `)
  -app key=secret
  -app key=@file
        An app's AppKey and AppSecret; may be repeated. Other users of this machine can read a command line: with
        @file the secret is the content of a file, less one trailing line break. A secret that begins with @ has
        to be in a file.
  -corp-ids key=corpId,…
        The organizations in which an app of -app runs, for the unified call; may be repeated.
        (default ` + simulator.DefaultCorpID + ` for each app)
  -token-lifetime duration
        How long a token lives, such as 90s or 2h; at least 1s. (default 2h)

Faults can be switched on, and apps added, over HTTP while it runs; app.json holds {"secret":"…"} or
{"secret":"…","corp_ids":["…"]}:

  curl -X PUT -d '{"kind":"hang","times":1}' http://` + defaultAddress + `/simulator/faults/dingdemo
  curl -X PUT -d @app.json http://` + defaultAddress + `/simulator/apps/dingdemo

The kinds of faults; their fields are in the documentation of internal/simulator. Those of HTTP/2 need TLS, which is
available in Go tests only:

  `

const (
	defaultAddress = "127.0.0.1:8123"

	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

type settings struct {
	address  string
	lifetime time.Duration
	apps     map[string]string
	corpIDs  map[string][]string
}

// run serves until ctx ends, and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	set, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage())
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "dingtalk-simulator: %v\nRun dingtalk-simulator -help for the flags.\n", err)
		return exitUsage
	}
	if err := serve(ctx, set, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "dingtalk-simulator: %v\n", err)
		return exitFailed
	}
	return exitOK
}

func serve(ctx context.Context, set settings, stdout, stderr io.Writer) error {
	listener, err := simulator.Listen(set.address)
	if err != nil {
		return err
	}
	server := simulator.New(simulator.Options{
		TokenLifetime: set.lifetime,
		Apps:          set.apps,
		CorpIDs:       set.corpIDs,
		Logger:        slog.New(slog.NewTextHandler(stderr, nil)),
	})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	// Connections wait in the listener's queue even if Serve has not come to accept them.
	if _, err := fmt.Fprintln(stdout, simulator.BaseURL(listener)); err != nil {
		return errors.Join(err, server.Close())
	}
	select {
	case <-ctx.Done():
		return server.Close()
	case err := <-served:
		return errors.Join(err, server.Close())
	}
}

func parse(args []string) (settings, error) {
	set := settings{apps: make(map[string]string), corpIDs: make(map[string][]string)}
	var apps, corpIDs []string
	flags := flag.NewFlagSet("dingtalk-simulator", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&set.address, "address", defaultAddress, "")
	flags.DurationVar(&set.lifetime, "token-lifetime", simulator.DefaultTokenLifetime, "")
	// Checked below: the flag package would put a refused value into its error.
	flags.Func("app", "", func(value string) error {
		apps = append(apps, value)
		return nil
	})
	flags.Func("corp-ids", "", func(value string) error {
		corpIDs = append(corpIDs, value)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return settings{}, err
	}
	if flags.NArg() > 0 {
		return settings{}, fmt.Errorf(
			"%d arguments too many after the flags; a value with spaces needs quotes",
			flags.NArg(),
		)
	}
	if err := simulator.CheckAddress(set.address); err != nil {
		return settings{}, fmt.Errorf("-address: %w", err)
	}
	if set.lifetime < time.Second {
		return settings{}, fmt.Errorf("-token-lifetime %s is less than 1s", set.lifetime)
	}
	for i, value := range apps {
		key, secret, err := parseApp(value)
		if err == nil && set.apps[key] != "" {
			err = errors.New("its key was given before")
		}
		if err != nil {
			return settings{}, fmt.Errorf("-app number %d: %w", i+1, err)
		}
		set.apps[key] = secret
	}
	for i, value := range corpIDs {
		key, list, found := strings.Cut(value, "=")
		var err error
		switch {
		case !found:
			err = errors.New("want key=corpId or key=corpId,corpId")
		case set.apps[key] == "":
			err = errors.New("no -app has its key")
		case set.corpIDs[key] != nil:
			err = errors.New("its key was given before")
		default:
			set.corpIDs[key] = strings.Split(list, ",")
			err = simulator.CheckCorpIDs(set.corpIDs[key])
		}
		if err != nil {
			return settings{}, fmt.Errorf("-corp-ids number %d: %w", i+1, err)
		}
	}
	return set, nil
}

func parseApp(value string) (key, secret string, err error) {
	key, secret, found := strings.Cut(value, "=")
	if !found || key == "" || key == simulator.AnyApp {
		return "", "", errors.New("want key=secret or key=@file")
	}
	if file, ok := strings.CutPrefix(secret, "@"); ok {
		content, err := os.ReadFile(file) //nolint:gosec // the user of the command names the file
		if err != nil {
			var path *fs.PathError // whose text has the name, which is a secret if its owner did not mean a file
			if errors.As(err, &path) {
				err = path.Err
			}
			return "", "", fmt.Errorf("the file of the secret: %w", err)
		}
		secret = strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	}
	if secret == "" {
		return "", "", errors.New("the secret is empty")
	}
	if strings.ContainsAny(secret, "\r\n") {
		return "", "", errors.New("the secret has a line break in it")
	}
	return key, secret, nil
}
