package release

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/release/signing"
	"steward/internal/wire"
)

const tag = "release"

// Routes adds the room's operations.
func (s *Service) Routes(a *httpapi.API) {
	s.repositoryRoutes(a)
	s.artifactRoutes(a)
	s.releaseRoutes(a)
}

type body[T any] struct{ Body T }

// wholeTenant is asked before anything that changes what the tenant's devices may trust or install:
// keys and releases carry no labels, so who sees a part of the fleet has no part of them.
func wholeTenant(who httpapi.Principal) error { return who.WholeTenant("the release repository") }

func (s *Service) repositoryRoutes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{
		ID: "get-release-repository", Method: http.MethodGet, Path: "/release-repository", Tag: tag, Role: httpapi.Viewer,
		Summary: "State of the TUF repository: versions, expiries, thresholds, online keys",
	}, func(ctx context.Context, who httpapi.Principal, _ *struct{}) (*body[Repository], error) {
		repo, err := s.Repository(ctx, who.Scope.Tenant)
		return &body[Repository]{repo}, err
	})
	type metadataIn struct {
		File string `path:"file" maxLength:"100" doc:"root.json and targets.json give the newest"`
	}
	type metadataOut struct {
		ContentType string `header:"Content-Type"`
		Body        []byte
	}
	httpapi.Register(a, httpapi.Op{
		ID: "get-release-metadata", Method: http.MethodGet, Path: "/release-repository/metadata/{file}", Tag: tag, Role: httpapi.Viewer,
		Summary: "A file of the TUF repository, as devices get it",
	}, func(ctx context.Context, who httpapi.Principal, in *metadataIn) (*metadataOut, error) {
		data, err := s.newest(ctx, who, in.File)
		return &metadataOut{ContentType: "application/json", Body: data}, err
	})
	type rootIn struct {
		Body struct {
			Root []byte `json:"root" doc:"The bytes of root.json in base64"`
		}
	}
	httpapi.Register(a, httpapi.Op{
		ID: "set-release-root", Method: http.MethodPut, Path: "/release-repository/root", Tag: tag, Role: httpapi.Admin,
		Summary: "Set the first root, or its signed successor",
		Detail:  "The first root may be any that its own keys have signed and that names this server's online keys. Devices pin it when they enroll. A later one must follow the current one by TUF's rules.",
	}, func(ctx context.Context, who httpapi.Principal, in *rootIn) (*body[Repository], error) {
		if err := wholeTenant(who); err != nil {
			return nil, err
		}
		repo, err := s.SetRoot(ctx, who.Actor, who.Scope.Tenant, in.Body.Root)
		return &body[Repository]{repo}, err
	})
	httpapi.Register(a, httpapi.Op{
		ID: "init-managed-release-keys", Method: http.MethodPost, Path: "/release-repository/managed", Tag: tag, Role: httpapi.Admin,
		Summary: "Let the server make and hold the root and targets keys", Detail: ManagedWarning,
	}, func(ctx context.Context, who httpapi.Principal, _ *struct{}) (*body[Repository], error) {
		if err := wholeTenant(who); err != nil {
			return nil, err
		}
		repo, err := s.InitManaged(ctx, who.Actor, who.Scope.Tenant)
		return &body[Repository]{repo}, err
	})
	type targetsIn struct {
		Body struct {
			Targets   []byte   `json:"targets" doc:"The bytes of the signed targets.json in base64"`
			Manifests [][]byte `json:"manifests,omitempty" maxItems:"100" doc:"The bytes of the new releases' manifests in base64"`
		}
	}
	httpapi.Register(a, httpapi.Op{
		ID: "publish-release-targets", Method: http.MethodPost, Path: "/release-repository/targets", Tag: tag, Role: httpapi.ReleaseManager,
		Summary: "Publish releases by signed targets metadata", MaxBody: 16 << 20,
		Detail: "Its version is the current one plus one. New artifacts must have been uploaded; a release that the new targets no longer list is removed unless it is in use.",
	}, func(ctx context.Context, who httpapi.Principal, in *targetsIn) (*body[Repository], error) {
		if err := wholeTenant(who); err != nil {
			return nil, err
		}
		repo, err := s.Publish(ctx, who.Actor, who.Scope.Tenant, in.Body.Targets, in.Body.Manifests)
		return &body[Repository]{repo}, err
	})
}

// newest resolves the names without a version, which are for people and the command line.
func (s *Service) newest(ctx context.Context, who httpapi.Principal, name string) ([]byte, error) {
	repo, err := s.Repository(ctx, who.Scope.Tenant)
	if err != nil {
		return nil, err
	}
	switch name {
	case "root.json":
		name = versioned(repo.Root.Version, "root")
	case "targets.json":
		name = versioned(repo.Targets.Version, "targets")
	case "snapshot.json":
		name = versioned(repo.Snapshot.Version, "snapshot")
	}
	return s.Metadata(ctx, who.Scope.Tenant, name)
}

func (s *Service) artifactRoutes(a *httpapi.API) {
	type uploadIn struct {
		ID string `path:"id" maxLength:"40"`
	}
	httpapi.Register(a, httpapi.Op{
		ID: "start-artifact-upload", Method: http.MethodPost, Path: "/artifact-uploads", Tag: tag, Role: httpapi.ReleaseManager,
		Summary: "Begin to upload an artifact", Status: http.StatusCreated,
		Detail: "Send its bytes by PATCH from offset 0 on, in as many parts as you like, then finish with the SHA-256. After a lost connection, GET tells from where to go on.",
	}, func(context.Context, httpapi.Principal, *struct{}) (*body[Upload], error) {
		return &body[Upload]{s.StartUpload()}, nil
	})
	httpapi.Register(a, httpapi.Op{
		ID: "get-artifact-upload", Method: http.MethodGet, Path: "/artifact-uploads/{id}", Tag: tag, Role: httpapi.ReleaseManager,
		Summary: "How far an upload is",
	}, func(_ context.Context, who httpapi.Principal, in *uploadIn) (*body[Upload], error) {
		u, err := s.UploadState(who.Scope.Tenant, in.ID)
		return &body[Upload]{u}, err
	})
	a.Stream(httpapi.Op{
		ID: "append-artifact-upload", Method: http.MethodPatch, Path: "/artifact-uploads/{id}", Tag: tag, Role: httpapi.ReleaseManager,
		Summary: "Send bytes of an upload from ?offset= on", MaxBody: wire.MaxArtifactBytes,
		Accept: "application/octet-stream", Produce: "application/json", Query: map[string]string{"offset": "How many bytes were sent before"},
	}, s.appendUpload)
	type finishIn struct {
		ID   string `path:"id" maxLength:"40"`
		Body struct {
			SHA256 string `json:"sha256" doc:"Of the whole content, lower case hex"`
		}
	}
	httpapi.Register(a, httpapi.Op{
		ID: "finish-artifact-upload", Method: http.MethodPost, Path: "/artifact-uploads/{id}/finish", Tag: tag, Role: httpapi.ReleaseManager,
		Summary: "Check the content and keep it as an artifact",
	}, func(ctx context.Context, who httpapi.Principal, in *finishIn) (*body[Artifact], error) {
		hash, err := wire.ParseHash(in.Body.SHA256)
		if err != nil {
			return nil, fault.Bad("body.sha256", "%v", err)
		}
		art, err := s.FinishUpload(ctx, who.Actor, who.Scope.Tenant, in.ID, hash)
		return &body[Artifact]{art}, err
	})
	type hashIn struct {
		SHA256 string `path:"sha256" maxLength:"64"`
	}
	httpapi.Register(a, httpapi.Op{
		ID: "get-artifact", Method: http.MethodGet, Path: "/artifacts/{sha256}", Tag: tag, Role: httpapi.Viewer,
		Summary: "Whether an artifact is there already",
	}, func(ctx context.Context, who httpapi.Principal, in *hashIn) (*body[Artifact], error) {
		hash, err := wire.ParseHash(in.SHA256)
		if err != nil {
			return nil, fault.Bad("path.sha256", "%v", err)
		}
		art, err := s.ArtifactInfo(ctx, who.Scope.Tenant, hash)
		return &body[Artifact]{art}, err
	})
	a.Stream(httpapi.Op{
		ID: "download-artifact", Method: http.MethodGet, Path: "/artifacts/{sha256}/content", Tag: tag, Role: httpapi.Viewer,
		Summary: "An artifact's bytes; range requests are served",
	}, s.downloadArtifact)
}

func (s *Service) appendUpload(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil || offset < 0 {
		return fault.Bad("query.offset", "want the number of bytes sent before")
	}
	u, err := s.AppendUpload(r.Context(), who.Scope.Tenant, r.PathValue("id"), offset, r.Body)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(u)
}

func (s *Service) downloadArtifact(w http.ResponseWriter, r *http.Request, who httpapi.Principal) error {
	content, _, err := s.Artifact(r.Context(), who.Scope.Tenant, r.PathValue("sha256"))
	if err != nil {
		return err
	}
	defer content.Close() //nolint:errcheck // read only
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"`+r.PathValue("sha256")+`"`)
	http.ServeContent(w, r, "", time.Time{}, content)
	return nil
}

type releaseIn struct {
	Name    string `path:"name" maxLength:"64"`
	Version string `path:"version" maxLength:"64"`
}

// ReleaseStates is a release and how far the caller's devices are with it.
type ReleaseStates struct {
	Release
	States map[string]int64 `json:"states,omitempty" doc:"Devices by how far they are: pending, downloading, …, committed, rolled_back, failed"`
}

func (s *Service) releaseRoutes(a *httpapi.API) {
	type listIn struct {
		httpapi.PageIn
		Name string `query:"name" maxLength:"64" doc:"Only releases of this name"`
	}
	httpapi.Register(a, httpapi.Op{
		ID: "list-releases", Method: http.MethodGet, Path: "/releases", Tag: tag, Role: httpapi.Viewer, Summary: "Releases, newest first",
	}, func(ctx context.Context, who httpapi.Principal, in *listIn) (*body[httpapi.List[Release]], error) {
		items, next, err := s.List(ctx, Filter{Tenant: who.Scope.Tenant, Name: in.Name, Limit: in.Limit, Cursor: in.Cursor})
		return &body[httpapi.List[Release]]{httpapi.List[Release]{Items: items, Next: next}}, err
	})
	httpapi.Register(a, httpapi.Op{
		ID: "get-release", Method: http.MethodGet, Path: "/releases/{name}/{version}", Tag: tag, Role: httpapi.Viewer,
		Summary: "One release with components, hashes, commands and how far devices are",
	}, func(ctx context.Context, who httpapi.Principal, in *releaseIn) (*body[ReleaseStates], error) {
		r, err := s.Release(ctx, who.Scope.Tenant, in.Name, in.Version)
		if err != nil {
			return nil, err
		}
		states, err := s.States(ctx, who.Scope, Ref{in.Name, in.Version})
		return &body[ReleaseStates]{ReleaseStates{r, states}}, err
	})
	type pushIn struct {
		Body struct {
			Manifest  wire.ReleaseManifest `json:"manifest" doc:"The artifact names are filled in by the server"`
			Artifacts []Artifact           `json:"artifacts" maxItems:"32" doc:"One for each component, in their order, as they were uploaded"`
		}
	}
	httpapi.Register(a, httpapi.Op{
		ID: "push-managed-release", Method: http.MethodPost, Path: "/releases", Tag: tag, Role: httpapi.ReleaseManager,
		Summary: "Sign and publish a release with the keys on the server (managed mode only)", Status: http.StatusCreated, MaxBody: 2 << 20,
	}, func(ctx context.Context, who httpapi.Principal, in *pushIn) (*body[Release], error) {
		if err := wholeTenant(who); err != nil {
			return nil, err
		}
		var artifacts []signing.Artifact
		for _, a := range in.Body.Artifacts {
			artifacts = append(artifacts, signing.Artifact(a))
		}
		r, err := s.PushManaged(ctx, who.Actor, who.Scope.Tenant, in.Body.Manifest, artifacts)
		return &body[Release]{r}, err
	})
	httpapi.Register(a, httpapi.Op{
		ID: "delete-release", Method: http.MethodDelete, Path: "/releases/{name}/{version}", Tag: tag, Role: httpapi.ReleaseManager,
		Summary: "Remove a release that nothing uses (managed mode only)", Status: http.StatusNoContent,
	}, func(ctx context.Context, who httpapi.Principal, in *releaseIn) (*struct{}, error) {
		if err := wholeTenant(who); err != nil {
			return nil, err
		}
		return nil, s.RemoveManaged(ctx, who.Actor, who.Scope.Tenant, Ref(*in))
	})
}
