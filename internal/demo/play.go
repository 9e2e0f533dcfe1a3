// SPDX-License-Identifier: MPL-2.0

//go:build unix

package main

import (
	_ "embed"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"vault-plugin-secrets-dingtalk/internal/simulator"
	"vault-plugin-secrets-dingtalk/internal/subprocess"
)

// This file is what is shown, step by step.

const plugin = "vault-plugin-secrets-dingtalk"

var (
	//go:embed myapp-reader.hcl
	policyText string
	//go:embed agent.hcl
	agentText string
	//go:embed hints.txt
	hintsText string
)

func (s *stage) demo() {
	s.prepare()
	token := s.readTwice()
	s.readStatus()
	s.readInOrganization(token)
	s.refuseWrongSecret(token)
	s.allowRole()
	s.renderWithAgent(token)
	s.clearUp()
	took := int(time.Since(s.began).Seconds())
	s.printf("\nAll %d steps did what they say, in %d s. Nothing is left behind.\n", s.step, took)
}

func (s *stage) dev() {
	s.prepare()
	s.printHints()
	s.standBy()
}

func (s *stage) prepare() {
	s.startDingTalk()
	s.startVault()
	s.installPlugin()
	s.storeApp()
}

// startDingTalk starts the simulator with one app, unless the live API is used.
func (s *stage) startDingTalk() {
	if s.live {
		s.begin(strings.TrimSuffix("DingTalk is the live API at "+s.baseURL, " at "))
		s.note("the app's key and secret come from the environment; tokens and the secret are not shown")
		return
	}
	s.begin("Start the simulator in DingTalk's place")
	s.run(`printf %s "$DINGTALK_APP_SECRET" >app-secret`)
	s.launch("simulator", "dingtalk-simulator -address 127.0.0.1:0 -app "+s.appKey+"=@app-secret")
	s.baseURL = s.await("the simulator did not start", "simulator.log", `(?m)^(http:\S+)\n`)
	s.printf("%s\n", s.baseURL)
}

// startVault starts a dev server that may run plugins from the directory plugins.
func (s *stage) startVault() {
	s.begin("Start Vault with a plugin directory")
	s.write("vault.hcl", fmt.Sprintf("plugin_directory = %q\n", filepath.Join(s.work, "plugins")))
	s.run("cp " + quote(filepath.Join(s.bin, plugin)) + " plugins/")

	for tries := 0; s.token == ""; tries++ { // until no other program takes the port in the meantime
		if tries == 5 {
			s.fail("no port was free in %d tries", tries)
		}
		port, err := subprocess.DemoPorts.Free()
		s.must(err)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		s.address = "http://" + address
		s.launch("vault", "vault server -dev -dev-no-store-token -config=vault.hcl -dev-listen-address="+address)
		s.token = s.await("Vault did not start", "vault.log",
			`(?s)\nRoot Token: (\S+)\n.*\nDevelopment mode should NOT be used|address already in use`)
	}
	s.hide(s.token)
	s.env = append(s.env, "VAULT_ADDR="+s.address, "VAULT_TOKEN="+s.token)
	s.show("export VAULT_ADDR=" + s.address + " VAULT_TOKEN=" + s.token)
	s.run("vault status")
}

func (s *stage) installPlugin() {
	s.begin("Register the plugin in Vault's catalog, with its SHA-256 and version")
	if s.capture("plugins/"+plugin+" -version") != 0 {
		s.fail("the plugin does not run in %s; point TMPDIR at a directory where programs may run", s.work)
	}
	version := s.output
	sumTool := "sha256sum"
	if _, err := exec.LookPath(sumTool); err != nil {
		sumTool = "shasum -a 256"
	}
	s.run(sumTool + " plugins/" + plugin)
	sum, _, _ := strings.Cut(s.output, " ")
	s.run("vault plugin register -sha256=" + sum + " -version=" + version + " secret " + plugin)
	s.run("vault plugin info -version=" + version + " secret " + plugin)
	s.expect("the catalog's SHA-256", s.field("sha256"), sum)
	s.expect("the catalog's version", s.field("version"), version)

	s.begin("Enable it at dingtalk/")
	s.run("vault secrets enable -path=dingtalk " + plugin)
	s.run("vault read sys/mounts/dingtalk")
	s.expect("the mount's type", s.field("type"), plugin)
	s.expect("the running version", s.field("running_plugin_version"), version)
	s.expect("the running binary's SHA-256", s.field("running_sha256"), sum)
}

// storeApp stores the app's credentials. The secret goes in by standard input: a command line is
// there for all to see.
func (s *stage) storeApp() {
	s.begin("Store an app; the secret goes in by standard input, and never comes out again")
	s.run(`printf %s "$DINGTALK_APP_SECRET" | vault write dingtalk/config/myapp ` + s.appFields())
	s.run("vault read dingtalk/config/myapp")
	s.expect("app_key", s.field("app_key"), s.appKey)
	if strings.Contains(s.output, s.appSecret) {
		s.fail("the response holds the app's secret")
	}
}

// appFields are what a write of the app needs.
func (s *stage) appFields() string {
	return "app_key=" + quote(s.appKey) + " app_secret=-" + s.target()
}

// target is which of DingTalk's hosts and organizations the app belongs to, where that is not left
// to the plugin.
func (s *stage) target() (fields string) {
	if s.baseURL != "" {
		fields += " base_url=" + quote(s.baseURL)
	}
	if s.corpID != "" {
		fields += " corp_id=" + quote(s.corpID)
	}
	return fields
}

func (s *stage) readToken(app string) (token, lease string) {
	s.run("vault read dingtalk/creds/" + app)
	token, lease = s.field("access_token"), s.field("lease_id")
	if token == "" || lease == "" {
		s.fail("the response has no token, or no lease")
	}
	return token, lease
}

// readTwice shows what the plugin is for: readers share one token, and DingTalk is called once.
func (s *stage) readTwice() (token string) {
	s.begin("Read the credentials twice: one token, two leases, one call to DingTalk")
	token, first := s.readToken("myapp")
	again, second := s.readToken("myapp")
	s.expect("the second token", again, token)
	if first == second {
		s.fail("both reads have the lease %s", first)
	}
	s.note("the token is the same, the leases differ")
	if !s.live {
		url := s.baseURL + "/simulator/requests/" + s.appKey
		s.show("curl " + url) // which need not be installed
		request, err := http.NewRequestWithContext(s.ctx, http.MethodGet, url, http.NoBody)
		s.must(err)
		response, err := http.DefaultClient.Do(request)
		s.must(err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		s.must(err)
		s.output = string(body)
		s.printf("%s\n", strings.TrimSpace(s.output))
		s.expectOutput(`{"requests":1}`)
		s.note("the simulator was asked for a token once, when the app was stored")
	}
	return token
}

func (s *stage) readStatus() {
	s.begin("Look at the state of the app's token")
	s.run("vault read dingtalk/status/myapp")
	s.expect("state", s.field("state"), "fresh")
	calls, _ := strconv.Atoi(s.field("upstream_calls"))
	failures, _ := strconv.Atoi(s.field("upstream_failures")) // such an attempt is repeated
	s.expect("upstream_calls less upstream_failures", strconv.Itoa(calls-failures), "1")
}

// readInOrganization shows an app whose tokens come from DingTalk's unified call. With the live API,
// the app of the demo is one where DINGTALK_CORP_ID says so.
func (s *stage) readInOrganization(token string) {
	if s.live {
		return
	}
	s.begin("With corp_id, the token comes from DingTalk's unified call, for that organization")
	s.run(`printf %s "$DINGTALK_APP_SECRET" | vault write dingtalk/config/orgapp ` + s.appFields() +
		" corp_id=" + simulator.DefaultCorpID)
	s.run("vault read -field=corp_id dingtalk/config/orgapp")
	s.expect("corp_id", s.output, simulator.DefaultCorpID)
	if other, _ := s.readToken("orgapp"); other == token {
		s.fail("both apps have the same token")
	}
	s.note("the key is the same, the token is another")
}

// refuseWrongSecret shows that a mistake is refused at once and changes nothing.
func (s *stage) refuseWrongSecret(token string) {
	s.begin("A wrong secret is refused, and nothing is stored")
	s.refused("printf %s not-the-secret | vault write dingtalk/config/otherapp " + s.appFields())
	s.runFor(2, "vault read dingtalk/config/otherapp")
	s.expectOutput("No value found")
	if s.live {
		return // one wrong secret is enough for the real DingTalk
	}

	s.begin("Nor does a wrong secret spoil an app that works")
	s.capture("vault read dingtalk/config/myapp")
	before := s.output
	s.refused("printf %s not-the-secret | vault write dingtalk/config/myapp app_secret=-" + s.target())
	s.capture("vault read dingtalk/config/myapp")
	s.expect("the configuration", s.output, before)
	still, _ := s.readToken("myapp")
	s.expect("the token", still, token)
	s.note("the configuration is as before, and the token is still served")
}

func (s *stage) refused(command string) {
	s.runFor(2, command)
	s.expectOutput("Code: 400", "DingTalk rejected", "nothing was stored")
	if !s.live {
		s.expectOutput("invalidClientIdOrSecret")
	}
}

// allowRole shows what an application needs to be allowed.
func (s *stage) allowRole() {
	s.begin("Allow a role to read this app's token and nothing else")
	s.write("myapp-reader.hcl", policyText)
	s.run("vault policy write myapp-reader myapp-reader.hcl")
	s.run("vault auth enable approle")
	s.run("vault write auth/approle/role/myapp token_policies=myapp-reader token_ttl=1h")
	s.run("vault read -field=role_id auth/approle/role/myapp/role-id >role-id")
	s.run("vault write -f -field=secret_id auth/approle/role/myapp/secret-id >secret-id")
	if readFile("role-id") == "" || readFile("secret-id") == "" {
		s.fail("the role has no credentials")
	}
}

// renderWithAgent shows how an application gets the token without knowing Vault.
func (s *stage) renderWithAgent(token string) {
	s.begin("Vault Agent logs in with that role and renders the token into a file")
	s.write("agent.hcl", agentText)
	s.launch("agent", "env -u VAULT_TOKEN vault agent -config=agent.hcl")
	rendered := s.await("the Agent rendered nothing", "dingtalk.env", `(?s)^(.+)$`)
	if rendered != "DINGTALK_ACCESS_TOKEN="+token+"\n" {
		s.fail("the file does not hold the token")
	}
	s.run("ls -l dingtalk.env")
	s.expect("the file's mode", s.output[:min(10, len(s.output))], "-rw-------")
	s.run("cat dingtalk.env")
}

func (s *stage) clearUp() {
	s.begin("Stop everything and remove the temporary directory")
	var pids []any
	for _, p := range s.programs {
		pids = append(pids, p.PID())
	}
	s.show("kill " + strings.TrimSpace(fmt.Sprintln(pids...)))
	s.show("rm -r " + quote(s.work))
	s.must(s.close())
}

// printHints prints what a second terminal needs, the token too, and what to try there.
func (s *stage) printHints() {
	s.begin("All is running. Paste this into a second terminal")
	hints := map[string]string{
		"Bin": quote(filepath.Join(s.work, "bin")), "Address": s.address, "Token": s.token, "App": s.appKey,
		"Log": filepath.Join(s.work, "vault.log"),
	}
	if !s.live {
		hints["Simulator"] = s.baseURL
	}
	s.must(template.Must(template.New("hints").Parse(hintsText)).Execute(s.out, hints))
}

// standBy stays until something ends, and prints what the simulator logs meanwhile.
func (s *stage) standBy() {
	printed := len(readFile("simulator.log"))
	for ; ; time.Sleep(200 * time.Millisecond) {
		s.heed()
		for _, p := range s.programs {
			if !p.Running() {
				s.fail("%s ended by itself", p.name)
			}
		}
		log := readFile("simulator.log")
		s.printf("%s", log[printed:])
		printed = len(log)
	}
}
