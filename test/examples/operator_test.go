// SPDX-License-Identifier: MPL-2.0

package examples

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vault-plugin-secrets-dingtalk/internal/simulator"
)

// This file is what Vault Secrets Operator makes of the engine's responses. How it reads them is
// written down here as it is in its version 1.4.1 (controllers/vaultdynamicsecret_controller.go,
// controllers/common.go, helpers/secrets.go, helpers/template.go); the responses are the engine's
// own.

// rotation is what the operator takes from a response without a lease, where allowStaticCreds is
// set.
type rotation struct {
	last   int64 // last_vault_rotation, in seconds since 1970
	period int64
	ttl    int64
}

// readRotation takes last_vault_rotation as a string of RFC 3339 and panics at another type;
// rotation_period and ttl must be whole JSON numbers. A field that is not there counts as zero.
func readRotation(data map[string]any) (r rotation, err error) {
	if v := data["last_vault_rotation"]; v != nil {
		at, err := time.Parse(time.RFC3339Nano, v.(string))
		if err != nil {
			return r, err
		}
		r.last = at.Unix()
	}
	for field, to := range map[string]*int64{"rotation_period": &r.period, "ttl": &r.ttl} {
		if v := data[field]; v != nil {
			number, ok := v.(json.Number)
			if !ok {
				return r, errors.New("invalid " + field)
			}
			if *to, err = number.Int64(); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// isStatic reports whether the operator takes the response for one that it has to come back for. If
// not, it does not come back.
func (r rotation) isStatic() bool { return r.last > 0 && r.period >= 1 }

// nextRead is when it comes back at the latest: half a second after ttl, and at random a twentieth
// of three seconds more.
func (r rotation) nextRead() time.Duration {
	const jitter = 150 * time.Millisecond
	if r.ttl <= 0 {
		return time.Second + jitter
	}
	return time.Duration(r.ttl)*time.Second + 500*time.Millisecond + jitter
}

// waits reports whether the operator, having read the same rotation again, takes it for one in
// progress, and reads on for up to 10 seconds before it reports a failure.
func (r rotation) waits() bool { return r.ttl <= 2 }

// transformation is the part of spec.destination.transformation that the examples use.
type transformation struct {
	Includes   []string
	Excludes   []string
	ExcludeRaw bool `yaml:"excludeRaw"`
}

func matchesAny(patterns []string, field string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return regexp.MustCompile(p).MatchString(field) })
}

// secretData is what the operator writes into the Secret.
func (tr transformation) secretData(t *testing.T, response *api.Secret) map[string]string {
	t.Helper()
	data := map[string]string{}
	for field, value := range response.Data {
		if matchesAny(tr.Excludes, field) || len(tr.Includes) > 0 && !matchesAny(tr.Includes, field) {
			continue
		}
		data[field] = fmt.Sprint(value)
	}
	if !tr.ExcludeRaw {
		raw, err := json.Marshal(response.Data)
		require.NoError(t, err)
		data["_raw"] = string(raw)
	}
	return data
}

// compared is what of it decides whether the Secret is written and the targets are restarted. The
// pattern is the operator's.
func compared(data map[string]string) map[string]string {
	left := maps.Clone(data)
	maps.DeleteFunc(left, func(field, _ string) bool {
		return matchesAny([]string{"^ttl|rotation_schedule|rotation_period|last_vault_rotation|_raw$"}, field)
	})
	return left
}

// dynamicSecret is the example's VaultDynamicSecret.
func dynamicSecret(t *testing.T, file string) (object, transformation) {
	t.Helper()
	for _, o := range readObjects(t, "vault-secrets-operator") {
		if o.file == "vault-secrets-operator/"+file {
			require.Equal(t, "VaultDynamicSecret", o.data["kind"])
			var spec struct {
				Spec struct {
					Destination struct{ Transformation transformation }
				}
			}
			require.NoError(t, o.node.Decode(&spec))
			return o, spec.Spec.Destination.Transformation
		}
	}
	t.Fatalf("there is no %s", file)
	return object{}, transformation{}
}

func mustReadRotation(t *testing.T, response *api.Secret) rotation {
	t.Helper()
	r, err := readRotation(response.Data)
	require.NoError(t, err)
	return r
}

func TestVaultSecretsOperator_reads_the_unleased_response_and_comes_back_in_time(t *testing.T) {
	for name, c := range map[string]struct {
		config   map[string]any
		lifetime time.Duration
		age      time.Duration
		period   int64
		ttl      int64 // or one less, as the test takes a moment
	}{
		"just fetched":                        {period: 7000, ttl: 7000},
		"an hour old":                         {age: time.Hour, period: 7000, ttl: 3400},
		"seconds before it is due":            {age: 6990 * time.Second, period: 7000, ttl: 10},
		"due, and refreshed by the read":      {age: 7100 * time.Second, period: 7000, ttl: 7000},
		"expired, and fetched by the read":    {age: 7300 * time.Second, period: 7000, ttl: 7000},
		"the longest window":                  {config: map[string]any{"refresh_before": "1h"}, period: 5400, ttl: 5400},
		"a short life":                        {lifetime: 20 * time.Second, period: 15, ttl: 15},
		"the shortest life that is handed on": {lifetime: 4 * time.Second, period: 3, ttl: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			lifetime := cmp.Or(c.lifetime, simulator.DefaultTokenLifetime)
			e.upstream.SetTokenLifetime(lifetime)
			e.configure(map[string]any{"leased": false})
			e.configure(c.config)
			e.read()
			if c.age > 0 {
				e.age(c.age)
			}
			response := e.read()
			r := mustReadRotation(t, response)

			assert.True(t, r.isStatic())
			assert.Equal(t, c.period, r.period)
			assert.InDelta(t, float64(c.ttl)-0.5, float64(r.ttl), 0.5)
			expires, err := time.Parse(time.RFC3339, response.Data["expires_at"].(string))
			require.NoError(t, err)
			assert.Less(t, r.nextRead(), time.Until(expires), "the Secret never holds a dead token")
			assert.InDelta(t, lifetime.Seconds(), float64(expires.Unix()-r.last), 1)
		})
	}
}

func TestVaultSecretsOperator_finds_the_token_refreshed_when_it_comes_back(t *testing.T) {
	e := newEngine(t)
	e.configure(map[string]any{"leased": false})
	before := mustReadRotation(t, e.read())
	e.age(before.nextRead())
	after := mustReadRotation(t, e.read())
	assert.GreaterOrEqual(t, after.ttl, int64(6999))
	assert.Greater(t, after.last, before.last-int64(before.nextRead().Seconds()), "it is another rotation")
}

func TestVaultSecretsOperator_comes_back_soon_while_DingTalk_is_down(t *testing.T) {
	e := newEngine(t)
	e.configure(map[string]any{"leased": false})
	e.read()
	e.age(7050 * time.Second)
	e.upstream.SetFault(theKey, simulator.Fault{Kind: simulator.FaultRejectedCredentials}) // waits longest: a minute
	first := e.read()
	require.NotEmpty(t, first.Warnings)
	before := mustReadRotation(t, first)
	assert.True(t, before.isStatic())
	assert.InDelta(t, 60, before.ttl, 2)

	// It finds the rotation that it knows, and reads again at once.
	again := mustReadRotation(t, e.read())
	assert.Equal(t, before.last, again.last)
	assert.False(t, again.waits(), "the current token is good, so there is nothing to wait for")
	assert.Equal(t, 2, e.upstream.Requests(theKey), "and DingTalk is not asked for each read")
}

func TestVaultSecretsOperator_an_extended_token_restarts_nothing(t *testing.T) {
	o, tr := dynamicSecret(t, "unleased.yaml")
	require.Equal(t, true, o.at("spec.allowStaticCreds"))
	require.NotEmpty(t, o.at("spec.rolloutRestartTargets"), "there is something that could restart")
	e := newEngine(t)
	e.configure(map[string]any{"leased": false})
	e.read()
	e.age(time.Hour)
	before := e.read()
	e.age(time.Hour - time.Minute)
	after := e.read()
	require.Equal(t, 2, e.upstream.Requests(theKey))
	require.Equal(t, before.Data["access_token"], after.Data["access_token"], "DingTalk extends the token it gave")

	assert.Equal(t, map[string]string{"access_token": e.upstream.LastToken(theKey)}, tr.secretData(t, after))
	assert.Equal(t, compared(tr.secretData(t, before)), compared(tr.secretData(t, after)))

	// Without the transformation it would.
	bare := transformation{}
	assert.NotEqual(t, compared(bare.secretData(t, before)), compared(bare.secretData(t, after)))
	assert.Contains(t, compared(bare.secretData(t, after)), "expires_at")
}

func TestVaultSecretsOperator_a_replaced_token_restarts_what_it_should(t *testing.T) {
	_, tr := dynamicSecret(t, "unleased.yaml")
	e := newEngine(t)
	e.configure(map[string]any{"leased": false})
	before := e.read()
	e.upstream.RotateTokens(theKey, true)
	e.age(7050 * time.Second)
	assert.NotEqual(t, compared(tr.secretData(t, before)), compared(tr.secretData(t, e.read())))
}

// With a lease the operator asks for the time that the lease had at first. If it gets less, it
// takes a new lease.
func TestVaultSecretsOperator_a_renewal_gives_a_lease_its_whole_time_again(t *testing.T) {
	o, tr := dynamicSecret(t, "leased.yaml")
	percent, ok := o.at("spec.renewalPercent").(int)
	require.True(t, ok)
	require.Nil(t, o.at("spec.rolloutRestartTargets"), "a new lease restarts them, although the token is the same")
	for _, p := range []int{percent, percent + 10} { // it adds up to ten percent of the lease at random
		e := newEngine(t)
		e.configure(nil)
		response := e.read()
		assert.Equal(t, map[string]string{"access_token": e.upstream.LastToken(theKey)}, tr.secretData(t, response))
		l := e.issue()
		l.age(l.duration * time.Duration(p) / 100)
		assert.Equal(t, l.duration, l.renew(l.duration), "at %d percent", p)
		assert.Equal(t, 2, e.upstream.Requests(theKey), "the token itself is extended")
	}

	// Before half of the token's life a renewal extends nothing.
	e := newEngine(t)
	e.configure(nil)
	l := e.issue()
	l.age(l.duration * 40 / 100)
	assert.Less(t, l.renew(l.duration), l.duration)
}

// With a shorter default_lease_ttl of the mount, no renewal gains less than the one before,
// whenever the token was extended.
func TestVaultSecretsOperator_with_a_tuned_mount_every_renewal_gives_a_lease_its_whole_time_again(t *testing.T) {
	e := newEngine(t)
	e.system.DefaultLeaseTTLVal = 30 * time.Minute
	e.configure(nil)
	l := e.issue()
	require.Equal(t, 30*time.Minute, l.duration)
	for range 6 { // over more than the token's lifetime
		l.age(23 * time.Minute)
		require.Equal(t, l.duration, l.renew(l.duration))
	}
	require.Equal(t, 3, e.upstream.Requests(theKey), "a renewal in the second half of the token's life extends it")
}

func TestVaultSecretsOperator_the_mode_of_the_resource_has_to_be_that_of_the_app(t *testing.T) {
	e := newEngine(t)
	e.configure(nil)
	leased := mustReadRotation(t, e.read())
	assert.False(
		t,
		leased.isStatic(),
		"with allowStaticCreds, the operator does not come back for a response with a lease",
	)

	o, _ := dynamicSecret(t, "leased.yaml")
	assert.Nil(t, o.at("spec.allowStaticCreds"))
	assert.Nil(t, o.at("spec.refreshAfter"), "nor without it for a response without a lease")
}
