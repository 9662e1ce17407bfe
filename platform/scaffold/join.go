package scaffold

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"golang.org/x/mod/modfile"

	"github.com/marquee-ads/marquee/platform/edges"
)

// The files that all services share, relative to the checkout.
const (
	workFile     = "go.work"
	edgesFile    = "nomad-jobs/edges.hcl"
	servicesFile = "nomad-jobs/services.hcl"
)

// model is the service whose requirements a new one starts with.
const model = "account"

// direct are the modules that the new service's code imports, beside ours.
var direct = []string{
	"github.com/hashicorp/go-hclog", "github.com/jackc/pgx/v5", "github.com/oklog/ulid/v2",
	"github.com/stretchr/testify", "google.golang.org/grpc", "google.golang.org/protobuf",
}

func (s Service) database() string { return s.Name + "-db" }

func (s Service) jobFile() string { return "nomad-jobs/" + s.Name + ".nomad.hcl" }

func (s Service) use() string { return "./services/" + s.Name }

// drawn are the blocks that edges.hcl gets: people reach the service through the
// gateway, it reads the keys of access tokens from account, and it alone reaches
// its database.
func (s Service) drawn() string {
	return fmt.Sprintf(`
service %[1]q {
  protocol = "grpc"
}

service %[2]q {
  protocol = "tcp"
}

edge "gateway" %[1]q {}

edge %[1]q "account" {}

edge %[1]q %[2]q {}
`, s.Name, s.database())
}

// deployed is the block that services.hcl gets.
func (s Service) deployed() string {
	return fmt.Sprintf("\nservice %q {\n  database = true\n}\n", s.Name)
}

// join adds the service to what all share: new contents by path.
func (s Service) join(root string) (map[string][]byte, error) {
	changed := map[string][]byte{}
	for file, block := range map[string]string{edgesFile: s.drawn(), servicesFile: s.deployed()} {
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(file)))
		if err != nil {
			return nil, fmt.Errorf("reading what services share: %w", err)
		}
		changed[file] = append(append(bytes.TrimRight(text, "\n"), '\n'), block...)
	}
	if _, err := edges.Parse(changed[edgesFile], edgesFile); err != nil {
		return nil, err
	}
	work, err := readWork(root)
	if err != nil {
		return nil, err
	}
	if err := work.AddUse(s.use(), ""); err != nil {
		return nil, fmt.Errorf("adding to %s: %w", workFile, err)
	}
	changed[workFile] = formatWork(work)
	return changed, nil
}

func readWork(root string) (*modfile.WorkFile, error) {
	text, err := os.ReadFile(filepath.Join(root, workFile))
	if err != nil {
		return nil, fmt.Errorf("reading the workspace: %w", err)
	}
	work, err := modfile.ParseWork(workFile, text, nil)
	if err != nil {
		return nil, fmt.Errorf("reading the workspace: %w", err)
	}
	return work, nil
}

func formatWork(work *modfile.WorkFile) []byte {
	work.Cleanup()
	work.SortBlocks()
	return modfile.Format(work.Syntax)
}

// modules adds go.mod and go.sum, with the versions that the model has. What only
// the model needs stays in until somebody tidies: it costs nothing.
func (s Service) modules(root string, made map[string][]byte) error {
	folder := filepath.Join(root, "services", model)
	text, err := os.ReadFile(filepath.Join(folder, "go.mod"))
	if err != nil {
		return fmt.Errorf("reading the modules that services need: %w", err)
	}
	mod, err := modfile.Parse("services/"+model+"/go.mod", text, nil)
	if err != nil {
		return fmt.Errorf("reading the modules that services need: %w", err)
	}
	ours := strings.TrimSuffix(mod.Module.Mod.Path, "services/"+model)
	if err := mod.AddModuleStmt(ours + "services/" + s.Name); err != nil {
		return fmt.Errorf("naming the module: %w", err)
	}
	var required []*modfile.Require
	missing := slices.Clone(direct)
	for _, r := range mod.Require {
		known := strings.HasPrefix(r.Mod.Path, ours) || slices.Contains(direct, r.Mod.Path)
		missing = slices.DeleteFunc(missing, func(path string) bool { return path == r.Mod.Path })
		required = append(required, &modfile.Require{Mod: r.Mod, Indirect: !known})
	}
	if len(missing) > 0 {
		return fmt.Errorf("services/%s/go.mod, where versions are taken from, does not require %s", model, strings.Join(missing, ", "))
	}
	mod.SetRequireSeparateIndirect(required)
	mod.Cleanup()
	if made["services/"+s.Name+"/go.mod"], err = mod.Format(); err != nil {
		return fmt.Errorf("writing the module: %w", err)
	}
	if made["services/"+s.Name+"/go.sum"], err = os.ReadFile(filepath.Join(folder, "go.sum")); err != nil {
		return fmt.Errorf("reading the modules that services need: %w", err)
	}
	return nil
}

// leave takes the service out of what all share: new contents by path, for the
// files that name it, and what of that Create did not write.
func (s Service) leave(root string) (changed map[string][]byte, foreign []string, err error) {
	changed = map[string][]byte{}
	for file, block := range map[string]string{edgesFile: s.drawn(), servicesFile: s.deployed()} {
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(file)))
		if err != nil {
			return nil, nil, fmt.Errorf("reading what services share: %w", err)
		}
		without := bytes.Replace(text, []byte(block), nil, 1)
		rest, cut, err := s.cutBlocks(file, without)
		if err != nil {
			return nil, nil, err
		}
		foreign = append(foreign, cut...)
		if !bytes.Equal(rest, text) {
			changed[file] = rest
		}
	}
	work, err := readWork(root)
	if err != nil {
		return nil, nil, err
	}
	for _, use := range work.Use {
		if use.Path == s.use() {
			if err := work.DropUse(use.Path); err != nil {
				return nil, nil, fmt.Errorf("removing from %s: %w", workFile, err)
			}
			changed[workFile] = formatWork(work)
			break
		}
	}
	return changed, foreign, nil
}

// cutBlocks removes the blocks that name the service or its database in a label,
// and says where they were.
func (s Service) cutBlocks(file string, text []byte) (rest []byte, cut []string, err error) {
	parsed, diags := hclsyntax.ParseConfig(text, file, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, nil, fmt.Errorf("reading what services share: %w", diags)
	}
	body, ok := parsed.Body.(*hclsyntax.Body)
	if !ok {
		return nil, nil, fmt.Errorf("reading %s: its body is a %T", file, parsed.Body)
	}
	rest = slices.Clone(text)
	for _, block := range slices.Backward(body.Blocks) {
		if !slices.Contains(block.Labels, s.Name) && !slices.Contains(block.Labels, s.database()) {
			continue
		}
		whole := hcl.RangeBetween(block.TypeRange, block.CloseBraceRange)
		end := whole.End.Byte
		// With the line's end and the empty line behind it.
		for n := 0; n < 2 && end < len(rest) && rest[end] == '\n'; n++ {
			end++
		}
		rest = slices.Delete(rest, whole.Start.Byte, end)
		cut = append(cut, fmt.Sprintf("%s:%d: %s %q", file, whole.Start.Line, block.Type, block.Labels))
	}
	slices.Reverse(cut)
	return append(bytes.TrimRight(rest, "\n"), '\n'), cut, nil
}
