package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/demo"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/stack"
)

const (
	allocA = "0a1b2c3d-0000-4000-8000-000000000001"
	allocB = "f9e8d7c6-0000-4000-8000-000000000002"
)

func TestTally(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	known := make(map[string]int)
	first := newTally()
	for range 3 {
		first.add("account-"+allocA, nil, 2*time.Millisecond)
		first.add("account-"+allocB, nil, time.Millisecond)
	}
	require.Equal(t, "03:04:05    6 calls   0a1b2c3d   3  f9e8d7c6   3   errors 0   slowest 2.0 ms", first.line(at, known))

	// An instance that is gone keeps its column.
	second := newTally()
	second.add("account-"+allocA, nil, time.Millisecond)
	second.add("", status.Error(codes.Unavailable, "gone"), 70*time.Millisecond)
	second.add("", status.Error(codes.Unavailable, "gone"), time.Millisecond)
	second.add("", errors.New("odd"), time.Millisecond)
	require.Equal(t,
		"03:04:05    4 calls   0a1b2c3d   1  f9e8d7c6   0   errors 3 (Unavailable 2, Unknown 1)   slowest 70.0 ms",
		second.line(at, known))

	// But not for ever.
	for range forgetAfter {
		second.line(at, known)
	}
	require.NotContains(t, second.line(at, known), "f9e8d7c6")
	require.Contains(t, second.line(at, known), "0a1b2c3d")
}

func TestShortInstance(t *testing.T) {
	for id, want := range map[string]string{
		allocA:              "0a1b2c3d",
		"account-" + allocA: "0a1b2c3d",
		"_nomad-task-" + allocA + "-group-account-account-grpc": "0a1b2c3d",
		"account-4711":                   "account-4711",
		"account-on-some-machine-abcdef": "chine-abcdef",
		"":                               "",
	} {
		require.Equal(t, want, shortInstance(id))
	}
}

func TestPrintStatus(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var text bytes.Buffer
	require.NoError(t, printStatus(&text, statusResult{
		Cluster: cluster.Status{Name: "local", Agents: []cluster.AgentStatus{{Name: "consul", Address: "127.0.0.1:10000", PID: 7}}},
		Services: []jobs.Service{{
			Name: "account", Status: "running", Desired: 1, Healthy: 1,
			Instances: []jobs.Instance{
				{
					AllocID: allocA, Node: "vm", State: "running", Health: "passing", Address: "127.0.0.1:10101", Release: "0123456789ab",
					Started: now.Add(-90 * time.Second),
				},
				{ID: "account-abcdefghijkl", Node: "vm", State: "by hand", Health: "critical", Output: "connection refused\nmore"},
			},
		}},
		Gateways: []stack.Gateway{{HTTP: "127.0.0.1:1", GRPC: "127.0.0.1:2"}, {HTTP: "127.0.0.1:3", GRPC: "127.0.0.1:4", Devices: "127.0.0.1:5"}},
	}, now))
	require.Equal(t, `cluster local   consul 127.0.0.1:10000 (pid 7)

SERVICE  INSTANCE      HEALTH    STATE    VERSION       ADDRESS          NODE  UP     RESTARTS
account                1 of 2    running                                              
         0a1b2c3d      passing   running  0123456789ab  127.0.0.1:10101  vm    1m30s  0
         abcdefghijkl  critical  by hand                                 vm           0

account abcdefghijkl is critical: connection refused

gateway   REST http://127.0.0.1:1   gRPC 127.0.0.1:2
gateway   REST http://127.0.0.1:3   gRPC 127.0.0.1:4   displays 127.0.0.1:5
`, text.String())
}

// Of a cluster that does not run whole, status shows what is known.
func TestStatusOfHalfACluster(t *testing.T) {
	half := cluster.Status{Name: "local", Problem: "nomad-client not running", Agents: []cluster.AgentStatus{
		{Name: "consul", PID: 7, Address: "127.0.0.1:10000", Log: "logs/consul.log"},
		{Name: "nomad-client", Log: "logs/nomad-client.log"},
	}}
	var text bytes.Buffer
	require.NoError(t, printAgents(&text, half))
	require.Equal(t, `cluster local is not running: nomad-client not running

AGENT         PID  ADDRESS          LOG
consul        7    127.0.0.1:10000  logs/consul.log
nomad-client  -    -                logs/nomad-client.log
`, text.String())

	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"--cluster", "never-was", "status", "--json"}, strings.NewReader(""), &stdout, &stderr)
	require.Equal(t, exitNotRunning, code)
	require.Contains(t, stderr.String(), "marquee --cluster never-was up starts it")
	var got statusResult
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &got))
	require.Equal(t, "never-was", got.Cluster.Name)
	require.False(t, got.Cluster.Ready)
	require.Equal(t, "consul, nomad-server, nomad-client not running", got.Cluster.Problem)
	require.Len(t, got.Cluster.Agents, 3)
	for _, a := range got.Cluster.Agents {
		require.Zero(t, a.PID)
		require.Contains(t, a.Log, "never-was")
	}
	require.Contains(t, stdout.String(), `"services": []`)
}

func TestWelcome(t *testing.T) {
	account := demo.Owner{Account: demo.Account{Key: "demo", Name: "demo@example.com", Password: "secret"}}
	result := upResult{FirstServed: 9.87, Total: 12.34, Gateways: []stack.Gateway{{HTTP: "127.0.0.1:1", GRPC: "127.0.0.1:2"}}, Owners: []demo.Owner{account}}
	text := welcome(result, "bin/marquee")
	require.Contains(t, text, "first request served after 9.9 s, all of it healthy after 12.3 s")
	require.Contains(t, text, "curl -X POST http://127.0.0.1:1/v1/accounts ")
	require.Equal(t, 2, strings.Count(text, "\n  curl "))
	require.Equal(t, 1, strings.Count(text, "\n  bin/marquee invoke "))
	require.NotContains(t, text, "Displays")

	account.OrganisationID, account.Organisation = "org_1", "Skyline Media"
	account.Displays = []demo.Display{{DeviceID: "dev_1", Name: "Gate 7"}, {DeviceID: "dev_2", Name: "Gate 8"}}
	result.Owners = []demo.Owner{account, {Account: demo.Account{Key: "demo2", Name: "demo2@example.com", Password: "another"}}}
	text = welcome(result, "bin/marquee")
	require.Contains(t, text, "demo@example.com, password secret (--as demo)\n            has 2 displays as Skyline Media, org_1\n")
	require.Contains(t, text, "demo2@example.com, password another (--as demo2)\n")
	require.Contains(t, text, "one of them (Gate 7):\n  bin/marquee watch devices\n  bin/marquee logs players --follow | grep --line-buffered dev_1\n")
	require.Contains(t, text, `ListPlays '{"organisation_id":"org_1","device_id":"dev_1"}' --as demo`)

	require.NotContains(t, text, "Book a slot")

	result.Advertisers = []demo.Advertiser{{
		Account: demo.Account{Key: "ads", Name: "ads@example.com", Password: "third", OrganisationID: "org_2", Organisation: "Northern Roast"},
		Orders:  []demo.Order{{OrderID: "ord_1"}, {OrderID: "ord_2"}},
	}}
	text = welcome(result, "bin/marquee")
	require.Contains(t, text, "ads@example.com, password third (--as ads)\n            has 2 orders as Northern Roast, org_2\n")
	require.Contains(t, text, "Book a slot of Gate 7 for today")

	result.Unchanged = true
	require.Contains(t, welcome(result, "bin/marquee"), "nothing was changed")
}

// The commands that are printed book a display when a shell runs them.
func TestWelcomeBooks(t *testing.T) {
	var got []string
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Content-Type") != "application/json" {
			http.Error(w, "no JSON", http.StatusUnsupportedMediaType)
			return
		}
		got = append(got, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")+" "+string(body))
		answers := map[string]string{
			"/v1/sessions": `{"session":{"sessionId":"x"}, "accessToken": "a-token", "refreshToken":"other"}`, "/v1/organisations/org_2/creatives": `{"creative":{"creativeId":"crv_1","versions":[]}}`,
			"/v1/organisations/org_2/orders": `{"order":{"orderId":"ord_1","lines":[{"lineId":"lin_1"}]}}`,
		}
		fmt.Fprint(w, answers[r.URL.Path])
	}))
	defer gateway.Close()
	said := booking(gateway.URL, demo.Advertiser{Account: demo.Account{Name: "ads@example.com", Password: "secret", OrganisationID: "org_2"}},
		demo.Owner{Account: demo.Account{Key: "demo", OrganisationID: "org_1"}, Displays: []demo.Display{{DeviceID: "dev_1", Name: "Gate 7", TimeZone: "Asia/Tokyo"}}}, "echo marquee")
	_, commands, found := strings.Cut(said, "appear there:\n")
	require.True(t, found)
	out, err := exec.CommandContext(t.Context(), "bash", "-c", commands).Output()
	require.Error(t, err, "the last command finds nothing in what echo says")
	require.Contains(t, string(out), `DecideApproval {"organisation_id":"org_1","creative_id":"crv_1","version":1,"approve":true} --as demo`)
	zone, err := time.LoadLocation("Asia/Tokyo")
	require.NoError(t, err)
	today := time.Now().In(zone).Format(time.DateOnly)
	require.Equal(t, []string{
		`POST /v1/sessions  {"name":"ads@example.com","password":"secret"}`,
		`POST /v1/organisations/org_2/creatives Bearer a-token {"request_id":"my-first-text","title":"Mine","content":{"text":{"text":"Hello, world"}}}`,
		`POST /v1/organisations/org_2/orders Bearer a-token {"request_id":"my-first-order","lines":[{"device_id":"dev_1","flight":{"start_date":"` + today + `","end_date":"` + today + `"},"slots":1,"creative_id":"crv_1"}]}`,
		`POST /v1/organisations/org_2/orders/ord_1:book Bearer a-token {"request_id":"my-first-booking"}`,
	}, got)
}

func TestShellQuote(t *testing.T) {
	for _, value := range []string{"", "plain/path:1", "two words", `it's "quoted" $HOME`, "a\nb", "`id`;"} {
		out, err := exec.Command("sh", "-c", "printf %s "+shellQuote(value)).Output()
		require.NoError(t, err)
		require.Equal(t, value, string(out))
	}
}
