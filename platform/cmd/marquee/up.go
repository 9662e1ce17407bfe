package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/demo"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/stack"
)

// servedPath is what the first request asks for: it goes through the gateway
// and the mesh to account and its database, and changes nothing.
const servedPath = "/v1/signing-keys"

type upCmd struct {
	JSON    bool          `name:"json" help:"Print the result as JSON; progress goes to standard error."`
	Timeout time.Duration `default:"15m" help:"Give up after this long. What runs then keeps running."`
	NoDemo  bool          `help:"Make no displays to look at and no orders, and run no players: there is the demo account alone. What was made before stays."`
}

// upResult is what up prints with --json.
type upResult struct {
	Cluster     string          `json:"cluster"`
	Unchanged   bool            `json:"unchanged"`
	FirstServed float64         `json:"first_served_seconds"`
	Total       float64         `json:"total_seconds"`
	Gateways    []stack.Gateway `json:"gateways"`
	Account     string          `json:"demo_account"`
	Owners      []demo.Owner    `json:"demo_owners"`
	// Advertisers is empty with --no-demo.
	Advertisers []demo.Advertiser `json:"demo_advertisers"`
}

// Run brings everything up and says how to try it.
func (u *upCmd) Run(e *env) error {
	err := u.up(e)
	if err != nil {
		if _, there := os.Stat(cluster.Folder(e.root, e.name)); there == nil {
			fmt.Fprintf(e.stderr, "What runs so far keeps running: %s goes on with it, %s stops it.\n", e.command("up"), e.command("down"))
		}
	}
	return err
}

func (u *upCmd) up(e *env) error {
	ctx, cancel := e.within(u.Timeout)
	defer cancel()
	steps := newSteps(e.stderr)
	s, err := e.openWith(stack.Config{Progress: func(line string) { steps.say("%s", line) }, Demo: !u.NoDemo})
	if err != nil {
		return err
	}
	before, err := s.Cluster().Status(ctx)
	if err != nil {
		return err
	}
	if err := s.Prepare(ctx); err != nil {
		return because(ctx, err)
	}

	result := upResult{Cluster: e.name, Owners: []demo.Owner{}, Advertisers: []demo.Advertiser{}}
	var made demo.Demo
	var deployed []jobs.Deployed
	group, deploying := errgroup.WithContext(ctx)
	group.Go(func() error {
		var err error
		deployed, err = s.DeployAll(deploying)
		return err
	})
	group.Go(func() error {
		door, err := s.WaitServed(deploying, servedPath)
		if err != nil {
			return err
		}
		result.FirstServed = steps.elapsed().Seconds()
		steps.say("the first request was served: GET http://%s%s", door.HTTP, servedPath)
		if !u.NoDemo {
			made, err = s.MakeDemo(deploying, door)
			return err
		}
		account, err := s.MakeDemoAccount(deploying, door)
		made.Owners = []demo.Owner{account}
		return err
	})
	if err := group.Wait(); err != nil {
		return because(ctx, err)
	}

	if err := s.Prune(ctx); err != nil {
		return err
	}

	result.Unchanged = before.Ready && !made.Changed
	for _, d := range deployed {
		result.Unchanged = result.Unchanged && d.Unchanged
	}
	result.Account, result.Owners = made.Owners[0].Name, made.Owners
	result.Advertisers = append(result.Advertisers, made.Advertisers...)
	if result.Gateways, _, err = stack.Gateways(ctx, s.Cluster().Consul(), 0); err != nil {
		return err
	}
	if len(result.Gateways) == 0 {
		return errNoGateway
	}
	result.Total = steps.elapsed().Seconds()
	if u.JSON {
		return e.printJSON(result)
	}
	command := commandName(os.Args[0])
	if e.name != localCluster {
		command += " --cluster " + e.name
	}
	_, err = fmt.Fprint(e.stdout, welcome(result, command))
	return err
}

// commandName is how a person calls this program again: by its name where the
// shell finds it, else as it was called, and by go run where that made it.
func commandName(called string) string {
	if strings.Contains(called, "go-build") {
		return "go run ./platform/cmd/marquee"
	}
	self, err := os.Executable()
	if found, lookErr := exec.LookPath("marquee"); err == nil && lookErr == nil && found == self {
		return "marquee"
	}
	return called
}

// welcome is what a person reads when everything is up; command calls this
// program.
func welcome(r upResult, command string) string {
	var text strings.Builder
	if r.Unchanged {
		text.WriteString("\nEverything was up already; nothing was changed.\n")
	} else {
		fmt.Fprintf(&text, "\nMarquee is up: first request served after %.1f s, all of it healthy after %.1f s.\n", r.FirstServed, r.Total)
	}
	text.WriteString("\n")
	for _, g := range r.Gateways {
		fmt.Fprintf(&text, "  %s\n", doors(g))
	}
	for _, o := range r.Owners {
		fmt.Fprintf(&text, "  account   %s, password %s (--as %s)\n", o.Name, o.Password, o.Key)
		if len(o.Displays) > 0 {
			fmt.Fprintf(&text, "            has %d displays as %s, %s\n", len(o.Displays), o.Organisation, o.OrganisationID)
		}
	}
	for _, a := range r.Advertisers {
		fmt.Fprintf(&text, "  account   %s, password %s (--as %s)\n            has %d orders as %s, %s\n",
			a.Name, a.Password, a.Key, len(a.Orders), a.Organisation, a.OrganisationID)
	}
	url, first := "http://"+r.Gateways[0].HTTP, r.Owners[0]
	fmt.Fprintf(&text, `
Try:
  curl -X POST %[1]s/v1/accounts -H 'content-type: application/json' -d '{"request_id":"my-first-sign-up","name":"ada@example.com","password":"a long pass phrase"}'
  curl -X POST %[1]s/v1/sessions -H 'content-type: application/json' -d '{"name":"%[2]s","password":"%[3]s"}'
  %[4]s invoke marquee.account.v1.AccountService/GetAccount '{"account_id":"me"}' --as %[5]s
`, url, first.Name, first.Password, command, first.Key)
	if len(first.Displays) > 0 {
		fmt.Fprintf(&text, `
Displays, all of them and one of them (%[4]s):
  %[1]s watch devices
  %[1]s logs players --follow | grep --line-buffered %[2]s
  %[1]s invoke marquee.device.v1.DeviceService/ListPlays '{"organisation_id":"%[3]s","device_id":"%[2]s"}' --as %[5]s
`, command, first.Displays[0].DeviceID, first.OrganisationID, first.Displays[0].Name, first.Key)
	}
	if len(r.Advertisers) > 0 && len(first.Displays) > 0 {
		text.WriteString(booking(url, r.Advertisers[0], first, command))
	}
	return text.String()
}

// booking is how an advertiser books a display, with curl, and sees its text appear
// there. Each step has a request_id: it is done once a day, however often it is typed.
func booking(url string, a demo.Advertiser, o demo.Owner, command string) string {
	display := o.Displays[0]
	date := "'$(TZ=" + display.TimeZone + " date +%F)'"
	return fmt.Sprintf(`
Book a slot of %[8]s for today, and watch your text appear there:
  token=$(curl -s %[1]s/v1/sessions -H 'content-type: application/json' -d '{"name":"%[2]s","password":"%[3]s"}' | grep -o '"accessToken": *"[^"]*' | cut -d '"' -f 4)
  post() { curl -s "%[1]s/v1/organisations/%[4]s/$1" -H "authorization: Bearer $token" -H 'content-type: application/json' -d "$2"; }
  creative=$(post creatives '{"request_id":"my-first-text","title":"Mine","content":{"text":{"text":"Hello, world"}}}' | grep -o 'crv_[0-9A-Z]*' | head -n 1)
  order=$(post orders '{"request_id":"my-first-order","lines":[{"device_id":"%[5]s","flight":{"start_date":"%[10]s","end_date":"%[10]s"},"slots":1,"creative_id":"'$creative'"}]}' | grep -o 'ord_[0-9A-Z]*' | head -n 1)
  post orders/$order:book '{"request_id":"my-first-booking"}'
  %[6]s invoke marquee.order.v1.CreativeService/DecideApproval '{"organisation_id":"%[7]s","creative_id":"'$creative'","version":1,"approve":true}' --as %[9]s
  %[6]s logs players --follow | grep --line-buffered -e %[5]s -e 'Hello, world'
`, url, a.Name, a.Password, a.OrganisationID, display.DeviceID, command, o.OrganisationID, display.Name, o.Key, date)
}

type downCmd struct {
	Wipe    bool          `help:"Also remove the cluster's folder: databases, secrets, logs."`
	Timeout time.Duration `default:"3m" help:"Give up after this long."`
}

// Run stops the cluster; one that does not run is no error.
func (d *downCmd) Run(e *env) error {
	ctx, cancel := e.within(d.Timeout)
	defer cancel()
	steps := newSteps(e.stderr)
	s, err := e.open(func(line string) { steps.say("%s", line) })
	if err != nil {
		return err
	}
	if _, err := os.Stat(s.Cluster().Dir()); errors.Is(err, fs.ErrNotExist) {
		steps.say("there is no cluster called %s", e.name)
		return nil
	}
	down := s.Cluster().Down
	if d.Wipe {
		down = s.Cluster().Wipe
	}
	if err := down(ctx); err != nil {
		return because(ctx, err)
	}
	return nil
}
