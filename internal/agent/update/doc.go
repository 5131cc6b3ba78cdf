// Package update is the agent's room that installs releases. The server only names them; what is
// installed, and with which commands, must stand in targets that the release keys have signed, checked
// against the TUF root that was pinned at enrollment.
//
// One release at a time goes through this machine. Each arrow is a record in the journal that is on
// stable storage before the work behind it begins:
//
//		fetch ──▶ unpack ──▶ pre ──▶ switch ──▶ post ──▶ health ──▶ committed
//		  │          │        │        │          │         │
//		  └──────────┴─▶ failed        └──────────┴─────────┴──▶ rollback ──▶ rolled back
//		                      └───────────────────────────────────▲
//
//	  - fetch: metadata, manifest and artifacts; unpack: into a directory of their own. Until here nothing
//	    that runs is touched, and a newer wish replaces the run.
//	  - pre, post and health are the release's commands, switch exchanges the links "current" of all
//	    components. From pre on the run goes to its end whatever the server wishes meanwhile.
//	  - rollback exchanges the links back and runs the post commands of the version that ran before, so
//	    that services start again from it. A version installed for the first time has none: its link goes.
//
// After a kill the machine goes on with the step that the journal names. So steps may be done twice:
// commands must bear that. A step that is begun for the sixth time (the release resets the machine)
// rolls back. The state is reported as committed only after the record of the commit is on disk, and the
// first cause of a failure is written with the decision to roll back and never changed.
//
// On disk, below Config.Dir:
//
//	<component>/versions/<version>-<hash12>/   complete, or not there at all
//	<component>/current                        link to one of them; what services are started from
package update
