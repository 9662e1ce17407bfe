package stack

import (
	"context"
	"fmt"
	"maps"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/marquee-ads/marquee/platform/demo"
)

// Players is the job that plays the demo's displays.
const Players = "players"

// players is that job. It finds the credentials of the displays in its Nomad
// variable: each field is a device's id.
func players() Service {
	return Service{
		Name: Players, File: "nomad-jobs/players.nomad.hcl",
		Binaries: map[string]string{"players_binary": "player"}, Local: true,
	}
}

// DemoFolder is where the accounts of the demo are kept; see demo.ReadAccount.
func (s *Stack) DemoFolder() string { return s.cluster.Dir() }

// MakeDemo makes what is missing of the demo, through a gateway; see demo.Make. It is
// for the cluster on this machine, while its jobs come up or when they are there.
func (s *Stack) MakeDemo(ctx context.Context, door Gateway) (demo.Demo, error) {
	made, err := demo.Make(ctx, demo.Config{
		Gateway: door.GRPC, HTTP: door.HTTP, Folder: s.DemoFolder(),
		Credentials: func(ctx context.Context) (map[string]string, error) {
			variable, err := s.readSecrets(ctx, Players)
			if err != nil {
				return nil, err
			}
			return variable.Items, nil
		},
		Keep: func(ctx context.Context, credentials map[string]string) error {
			return s.changeVariable(ctx, Players, func(items nomad.VariableItems) error {
				clear(items)
				maps.Copy(items, credentials)
				return nil
			})
		},
	})
	if err != nil {
		return demo.Demo{}, fmt.Errorf("making the demo, which --no-demo leaves out: %w", err)
	}
	if made.Changed {
		s.say("the demo's displays are there")
	}
	return made, nil
}

// MakeDemoAccount makes the account of the demo's first owner, and no displays.
func (s *Stack) MakeDemoAccount(ctx context.Context, door Gateway) (demo.Owner, error) {
	account, err := demo.MakeAccount(ctx, demo.Config{Gateway: door.GRPC, Folder: s.DemoFolder()})
	if err != nil {
		return demo.Owner{}, fmt.Errorf("making the demo: %w", err)
	}
	return account, nil
}
