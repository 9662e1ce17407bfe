// Package meshconfig makes a Consul's view of the mesh what the edges say.
package meshconfig

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/marquee-ads/marquee/platform/edges"
)

// managed marks the config entries that Apply wrote, and may therefore remove.
const managed = "marquee-managed"

// Apply makes Consul's view of the mesh what the edges say: the protocol of each
// service and who may call it, and the TLS version that Envoys speak. It writes
// only what differs, and removes what it wrote before and the edges do not draw
// any more. Entries that somebody wrote by hand for other services are left alone.
func Apply(ctx context.Context, client *consulapi.Client, e edges.Edges) error {
	defaults, plain, permitted := entries{}, entries{}, entries{}
	for _, s := range e.Services() {
		defaults[s.Name] = &consulapi.ServiceConfigEntry{
			Kind: consulapi.ServiceDefaults, Name: s.Name, Protocol: s.Protocol, Meta: map[string]string{managed: "true"},
		}
		switch entry := intentionsFor(e, s.Name); {
		case len(entry.Sources) == 0:
		case slices.ContainsFunc(entry.Sources, func(s *consulapi.SourceIntention) bool { return len(s.Permissions) > 0 }):
			permitted[s.Name] = entry
		default:
			plain[s.Name] = entry
		}
	}
	all := entries{consulapi.MeshConfigMesh: meshDefaults()}
	drawn := entries{}
	maps.Copy(drawn, plain)
	maps.Copy(drawn, permitted)

	// Consul refuses permissions on a service that does not speak gRPC: they go
	// before the protocol changes, and come after it.
	if err := removeEntries(ctx, client, consulapi.ServiceIntentions, drawn); err != nil {
		return err
	}
	for _, next := range []entries{all, plain, defaults, permitted} {
		if err := writeEntries(ctx, client, next); err != nil {
			return err
		}
	}
	return removeEntries(ctx, client, consulapi.ServiceDefaults, defaults)
}

// SetEdge lets source call destination, or no longer, whatever the edges say,
// until Apply is called again. For tests: the change is seen by services within
// a fraction of a second.
func SetEdge(ctx context.Context, client *consulapi.Client, source, destination string, allow bool) error {
	entry := &consulapi.ServiceIntentionsConfigEntry{
		Kind: consulapi.ServiceIntentions, Name: destination, Meta: map[string]string{managed: "true"},
	}
	have, _, err := client.ConfigEntries().Get(consulapi.ServiceIntentions, destination, query(ctx))
	if err != nil && !notFound(err) {
		return fmt.Errorf("read who may call %s: %w", destination, err)
	}
	if old, ok := have.(*consulapi.ServiceIntentionsConfigEntry); ok {
		entry.Sources, entry.Meta = old.Sources, old.Meta
	}
	entry.Sources = slices.DeleteFunc(entry.Sources, func(s *consulapi.SourceIntention) bool { return s.Name == source })
	action := consulapi.IntentionActionDeny
	if allow {
		action = consulapi.IntentionActionAllow
	}
	entry.Sources = append(entry.Sources, &consulapi.SourceIntention{Name: source, Action: action, Type: consulapi.IntentionSourceConsul})
	if _, _, err := client.ConfigEntries().Set(entry, writing(ctx)); err != nil {
		return fmt.Errorf("change who may call %s: %w", destination, err)
	}
	return nil
}

// meshDefaults has Envoys speak TLS 1.3, which native services insist on, and
// Envoy does not offer as a client unless it is told.
func meshDefaults() *consulapi.MeshConfigEntry {
	return &consulapi.MeshConfigEntry{
		TLS: &consulapi.MeshTLSConfig{
			Incoming: &consulapi.MeshDirectionalTLSConfig{TLSMinVersion: "TLSv1_3"},
			Outgoing: &consulapi.MeshDirectionalTLSConfig{TLSMinVersion: "TLSv1_3", TLSMaxVersion: "TLSv1_3"},
		},
		Meta: map[string]string{managed: "true"},
	}
}

// entries are config entries of one kind by the service's name.
type entries map[string]consulapi.ConfigEntry

func intentionsFor(e edges.Edges, destination string) *consulapi.ServiceIntentionsConfigEntry {
	entry := &consulapi.ServiceIntentionsConfigEntry{
		Kind: consulapi.ServiceIntentions, Name: destination, Meta: map[string]string{managed: "true"},
	}
	for _, edge := range e.Edges() {
		if edge.Destination != destination {
			continue
		}
		source := &consulapi.SourceIntention{Name: edge.Source, Type: consulapi.IntentionSourceConsul}
		if len(edge.Permissions) == 0 {
			source.Action = consulapi.IntentionActionAllow
		}
		for _, p := range edge.Permissions {
			source.Permissions = append(source.Permissions, permission(p))
		}
		entry.Sources = append(entry.Sources, source)
	}
	return entry
}

func permission(p edges.Permission) *consulapi.IntentionPermission {
	out := &consulapi.IntentionPermission{
		Action: consulapi.IntentionActionDeny,
		HTTP: &consulapi.IntentionHTTPPermission{
			PathExact: p.PathExact, PathPrefix: p.PathPrefix, PathRegex: p.PathRegex, Methods: p.Methods,
		},
	}
	if p.Allow {
		out.Action = consulapi.IntentionActionAllow
	}
	for _, h := range p.Headers {
		out.HTTP.Header = append(out.HTTP.Header, consulapi.IntentionHTTPHeaderPermission{
			Name: h.Name, Present: h.Present, Exact: h.Exact, Prefix: h.Prefix, Suffix: h.Suffix,
			Contains: h.Contains, Regex: h.Regex, Invert: h.Invert, IgnoreCase: h.IgnoreCase,
		})
	}
	return out
}

func writeEntries(ctx context.Context, client *consulapi.Client, wanted entries) error {
	api := client.ConfigEntries()
	for _, want := range wanted {
		have, _, err := api.Get(want.GetKind(), want.GetName(), query(ctx))
		if err != nil && !notFound(err) {
			return fmt.Errorf("read %s of %s from Consul: %w", want.GetKind(), want.GetName(), err)
		}
		if err == nil && same(have, want) {
			continue
		}
		if _, _, err := api.Set(want, writing(ctx)); err != nil {
			return fmt.Errorf("write %s of %s to Consul: %w", want.GetKind(), want.GetName(), err)
		}
	}
	return nil
}

// same compares what Apply sets, and nothing that Consul fills in.
func same(have, want consulapi.ConfigEntry) bool {
	if !reflect.DeepEqual(have.GetMeta(), want.GetMeta()) {
		return false
	}
	switch want := want.(type) {
	case *consulapi.MeshConfigEntry:
		have, ok := have.(*consulapi.MeshConfigEntry)
		return ok && reflect.DeepEqual(have.TLS, want.TLS)
	case *consulapi.ServiceConfigEntry:
		have, ok := have.(*consulapi.ServiceConfigEntry)
		return ok && have.Protocol == want.Protocol
	case *consulapi.ServiceIntentionsConfigEntry:
		have, ok := have.(*consulapi.ServiceIntentionsConfigEntry)
		return ok && slices.EqualFunc(have.Sources, want.Sources, func(a, b *consulapi.SourceIntention) bool {
			return a.Name == b.Name && a.Action == b.Action && reflect.DeepEqual(a.Permissions, b.Permissions)
		})
	}
	return false
}

// removeEntries removes the entries of a kind that Apply wrote and that are not
// wanted any more.
func removeEntries(ctx context.Context, client *consulapi.Client, kind string, wanted entries) error {
	api := client.ConfigEntries()
	have, _, err := api.List(kind, query(ctx))
	if err != nil {
		return fmt.Errorf("list %s in Consul: %w", kind, err)
	}
	for _, entry := range have {
		if entry.GetMeta()[managed] != "true" || wanted[entry.GetName()] != nil {
			continue
		}
		if _, err := api.Delete(kind, entry.GetName(), writing(ctx)); err != nil {
			return fmt.Errorf("remove %s of %s from Consul: %w", kind, entry.GetName(), err)
		}
	}
	return nil
}

func query(ctx context.Context) *consulapi.QueryOptions {
	return (&consulapi.QueryOptions{}).WithContext(ctx)
}

func writing(ctx context.Context) *consulapi.WriteOptions {
	return (&consulapi.WriteOptions{}).WithContext(ctx)
}

func notFound(err error) bool {
	var status consulapi.StatusError
	return errors.As(err, &status) && status.Code == http.StatusNotFound
}
