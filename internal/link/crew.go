package link

// crew runs jobs on goroutines that it keeps for the next ones. A handshake or a message needs a deep stack,
// and a fresh goroutine would grow one anew each time: a twentieth of the work of a reconnecting fleet.
type crew struct {
	jobs chan func()   // to one who waits
	seat chan struct{} // one for each who may wait
	over <-chan struct{}
}

// crewMost is how many wait for work at most; there are more while there is more to do.
const crewMost = 64

func newCrew(over <-chan struct{}) *crew {
	return &crew{jobs: make(chan func()), seat: make(chan struct{}, crewMost), over: over}
}

// do runs the job on a goroutine other than the caller's. The caller counts what it does, so that somebody
// waits for its end; those who only wait for work end with over.
func (c *crew) do(job func()) {
	select {
	case c.jobs <- job:
	default:
		go c.work(job)
	}
}

func (c *crew) work(job func()) {
	for {
		job()
		job = nil // and what it holds
		select {
		case c.seat <- struct{}{}:
		default:
			return
		}
		select {
		case job = <-c.jobs:
			<-c.seat
		case <-c.over:
			return
		}
	}
}
