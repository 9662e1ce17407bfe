package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
)

// nomadOperator is the name of the operator's later tokens in Nomad.
const nomadOperator = "The operator"

// ensureOperator finds the operator's token in Consul: the servers make it from
// their configuration when they first have a leader, and after a rotation the
// old one makes it.
func (c Cluster) ensureOperator(ctx context.Context) error {
	_, _, err := c.Consul.ACL().TokenReadSelf(query(ctx, ""))
	before := c.Keys.Secrets.Before
	if err == nil || before == nil || before.ConsulManagement == "" || !forbidden(err) {
		return err
	}
	_, _, err = c.Consul.ACL().TokenCreate(&consulapi.ACLToken{
		SecretID: c.Keys.Secrets.ConsulManagement, Description: "The operator",
		Policies: []*consulapi.ACLLink{{Name: "global-management"}},
	}, (&consulapi.WriteOptions{Token: before.ConsulManagement}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("make the operator's new token with the old one: %w", err)
	}
	return nil
}

func forbidden(err error) bool {
	var status consulapi.StatusError
	return errors.As(err, &status) && status.Code == http.StatusForbidden
}

// rotateGossip has all agents learn the new keys before any uses them, and use
// them before any forgets the old ones.
func (c Cluster) rotateGossip(ctx context.Context) error {
	before := c.Keys.Secrets.Before
	if before == nil || before.ConsulGossip == "" {
		return nil
	}
	operator, key, old := c.Consul.Operator(), c.Keys.Secrets.ConsulGossip, before.ConsulGossip
	if err := operator.KeyringInstall(key, writing(ctx)); err != nil {
		return fmt.Errorf("give Consul's agents the new gossip key: %w", err)
	}
	if err := operator.KeyringUse(key, writing(ctx)); err != nil {
		return fmt.Errorf("have Consul's agents use the new gossip key: %w", err)
	}
	if err := operator.KeyringRemove(old, writing(ctx)); err != nil {
		return fmt.Errorf("have Consul's agents forget the old gossip key: %w", err)
	}
	rings, err := operator.KeyringList(query(ctx, ""))
	if err != nil {
		return fmt.Errorf("look at Consul's gossip keys: %w", err)
	}
	for _, ring := range rings {
		if ring.Keys[key] != ring.NumNodes || len(ring.Keys) != 1 {
			return fmt.Errorf("%d of %d Consul agents use the new gossip key alone", ring.Keys[key], ring.NumNodes)
		}
	}
	if err := c.rotateNomadGossip(before.NomadGossip, c.Keys.Secrets.NomadGossip); err != nil {
		return err
	}
	return c.Keys.SettleGossip()
}

func (c Cluster) rotateNomadGossip(old, key string) error {
	agent := c.Nomad.Agent()
	if _, err := agent.InstallKey(key); err != nil {
		return fmt.Errorf("give Nomad's servers the new gossip key: %w", err)
	}
	if _, err := agent.UseKey(key); err != nil {
		return fmt.Errorf("have Nomad's servers use the new gossip key: %w", err)
	}
	if _, err := agent.RemoveKey(old); err != nil {
		return fmt.Errorf("have Nomad's servers forget the old gossip key: %w", err)
	}
	return nil
}

// rotateNomadOperator makes the operator's new token: its secret is Nomad's to
// choose. One whose secret was lost on the way is removed by Withdraw.
func (c Cluster) rotateNomadOperator(ctx context.Context) error {
	s := c.Keys.Secrets
	if s.Before == nil || s.Before.NomadManagement == "" || s.Before.NomadManagement != s.NomadManagement {
		return nil
	}
	made, _, err := c.Nomad.ACLTokens().Create(&nomadapi.ACLToken{Name: nomadOperator, Type: "management"}, (&nomadapi.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("make the operator's new token in Nomad: %w", err)
	}
	if err := c.Keys.SetNomadManagement(made.SecretID); err != nil {
		return err
	}
	c.Nomad.SetSecretID(made.SecretID)
	return nil
}

// Withdraw makes the tokens that were rotated away good for nothing. All machines
// must have the new ones by then: an agent that still shows an old one is refused.
// It does nothing when no tokens were rotated.
func Withdraw(ctx context.Context, c Cluster) error {
	before := c.Keys.Secrets.Before
	if before == nil || before.ConsulManagement == "" {
		return nil
	}
	if before.NomadManagement == c.Keys.Secrets.NomadManagement {
		return errors.New("the new tokens are not known to the cluster yet: marquee keys apply, and give the machines their new files")
	}
	old := append(slices.Sorted(maps.Values(before.Nodes)), before.ConsulNomadServer, before.ConsulNomadClient, before.ConsulManagement)
	for _, secret := range old {
		token, _, err := c.Consul.ACL().TokenReadSelf(query(ctx, secret))
		if err != nil {
			if forbidden(err) {
				continue // it was withdrawn before
			}
			return fmt.Errorf("look for an old token in Consul: %w", err)
		}
		if _, err := c.Consul.ACL().TokenDelete(token.AccessorID, writing(ctx)); err != nil {
			return fmt.Errorf("withdraw the old token of %s in Consul: %w", token.Description, err)
		}
	}
	tokens := c.Nomad.ACLTokens()
	own, _, err := tokens.Self((&nomadapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("ask Nomad for its operator: %w", err)
	}
	all, _, err := tokens.List((&nomadapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("list the tokens in Nomad: %w", err)
	}
	for _, token := range all {
		// Bootstrap Token is what Nomad calls the first one. Others are somebody's.
		ours := token.Name == nomadOperator || token.Name == "Bootstrap Token"
		if token.Type != "management" || !ours || token.AccessorID == own.AccessorID {
			continue
		}
		if _, err := tokens.Delete(token.AccessorID, (&nomadapi.WriteOptions{}).WithContext(ctx)); err != nil {
			return fmt.Errorf("withdraw the old token %q in Nomad: %w", token.Name, err)
		}
	}
	return c.Keys.SettleTokens()
}
