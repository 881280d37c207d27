//! A step's gradient, lane by lane, and its numbers, by all ranks.

use super::carrier::Ends;
use super::engine::Engine;
use super::lane_sums::{LaneSums, full};
use super::state::State;
use super::team::{Numbers, Team};
use crate::backend::Backend;
use crate::batch::{Batches, MicroBatch};
use crate::error::Result;
use crate::loss::LossSpec;
use crate::model::Gradients;

impl<'a, B: Backend> Engine<'a, B> {
    /// Takes steps with `team` from here on.
    pub(super) fn join(&mut self, team: Team<'a>) -> Result<()> {
        self.sums = LaneSums::new(self.be, self.state.model.table.trained_len, team.ranks())?;
        self.team = team;
        Ok(())
    }

    /// Goes through `own`, this rank's micro-batches of a step, by `pass`, and leaves the gradient of the whole step: where there
    /// are several lanes, in this rank's share.
    pub(super) fn by_lanes(
        &mut self,
        own: Vec<MicroBatch>,
        mut pass: impl FnMut(&mut Self, Vec<MicroBatch>) -> Result<()>,
    ) -> Result<()> {
        if self.sums.is_none() {
            self.clear_grads()?;
            return pass(self, own);
        }
        let (mut rest, lanes) = (own, self.team.ranks().own_lanes());
        for lane in lanes.clone() {
            let later = rest.split_off(rest.partition_point(|mb| mb.lane() <= lane));
            let last = lane + 1 == lanes.end && self.team.size() > 1;
            let (be, sums, state) = self.lanes();
            sums.set_aside(be, full(grads(state))?)?;
            self.clear_grads()?;
            if last {
                return self.last_lane((lane, rest.len()), |engine| pass(engine, rest));
            }
            pass(self, rest)?;
            self.settle()?;
            let (be, sums, state) = self.lanes();
            sums.add(be, lane, full(grads(state))?)?;
            rest = later;
        }
        self.end_lanes()
    }

    fn end_lanes(&mut self) -> Result<()> {
        let (team, (be, sums, State { shares, grads, .. })) = (self.team, self.lanes());
        sums.end(be, &team, shares, full(grads.as_mut().expect(TRAINS))?)
    }

    /// Goes through the last lane by `pass`, which makes that many passes, while what is whole of the gradients travels to the other ranks.
    fn last_lane(&mut self, of: (usize, usize), pass: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let team = self.team;
        std::thread::scope(|scope| {
            let (_, sums, State { model, shares, .. }) = self.lanes();
            let ends = sums.begin(scope, team, of, (&model.table, shares))?;
            pass(self)?;
            self.settle()?;
            self.end_lanes()?;
            ends.into_iter().for_each(Ends::well);
            Ok(())
        })
    }

    /// Sets to zero what no pass of a lane has set, and what is not to be looked at.
    fn settle(&mut self) -> Result<()> {
        let (be, State { model, grads, .. }) = (self.be, &mut self.state);
        let grads = grads.as_mut().expect(TRAINS);
        grads.settle(be, &model.table)?;
        model.table.unused.iter().try_for_each(|frozen| be.clear(grads.vectors(be, frozen.clone())))
    }

    fn lanes(&mut self) -> (&'a B, &mut LaneSums<B>, &mut State<B>) {
        (self.be, self.sums.as_mut().expect("there are several lanes"), &mut self.state)
    }

    /// The numbers of all `batches`, none of which trains, each rank computing its own.
    pub(super) fn evaluated(&mut self, batches: &Batches, spec: &LossSpec) -> Result<Vec<Numbers>> {
        let mut own = Vec::with_capacity(batches.own.len());
        // One micro-batch is always under way while the host prepares the next.
        let mut before = None;
        for mb in &batches.own {
            let late = self.start_evaluation(mb, spec)?;
            if let Some(late) = before.replace(late) {
                own.push(self.read(late, |responses, pairs| (responses.to_vec(), pairs.to_vec()))?);
            }
        }
        if let Some(late) = before {
            own.push(self.read(late, |responses, pairs| (responses.to_vec(), pairs.to_vec()))?);
        }
        self.team.numbers(batches, own)
    }
}

const TRAINS: &str = "an engine made to train has gradients";

fn grads<B: Backend>(state: &mut State<B>) -> &mut Gradients<B> {
    state.grads.as_mut().expect(TRAINS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::batch::Capacity;
    use crate::comm::launch::{Launcher, Place};
    use crate::comm::{World, join};
    use crate::error::Error;
    use crate::model::{Model, ModelConfig};
    use crate::train::engine::Purpose;
    use crate::train::shares::Shares;
    use std::hash::{BuildHasher, RandomState};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::{Duration, Instant};

    /// So many layers has the model, above which there are a bucket or two: no more than are under way at once.
    const LAYERS: usize = 2;

    /// `engine` as rank `rank` of two over TCP, which meet at `port` and have half a minute of patience; how its step of two lanes ends.
    fn steps(rank: usize, port: u16, pass: impl FnOnce(&mut Engine<'_, Cpu<f32>>) -> Result<()>) -> Result<()> {
        let place = Place { launcher: Launcher::Torchrun, rank, size: 2, local_rank: rank, local_size: None };
        let env = |name: &str| match name {
            "FUSEDPO_COMM_ADDRESS" => Some(format!("127.0.0.1:{port}")),
            "FUSEDPO_COMM_TIMEOUT" => Some("30".into()),
            _ => None,
        };
        let comm = join(Some(&place), &env)?;
        let text = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 128,
            "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "vocab_size": 700, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "max_position_embeddings": 8}"#;
        let config = ModelConfig::parse("config.json".as_ref(), &serde_json::from_str(text).unwrap())?;
        let be = Cpu::new()?;
        let model = Model::random(&be, config, 1, 8)?;
        let capacity = Capacity { slots: 8, predictions: 8, responses: 2, pairs: 1 };
        let mut engine = Engine::new(&be, model, capacity, Purpose::Train)?;
        engine.state.shares = Shares::new(&engine.state.model.table, false, World::of(rank, 2));
        engine.join(Team { comm: &*comm, lanes: 2 })?;
        let mut pass = Some(pass);
        let ended = engine.by_lanes(Vec::new(), |engine, _| pass.take().expect("one lane")(engine));
        // As the program does it.
        if ended.is_err() {
            comm.abort(1);
        }
        ended
    }

    /// What lies above the layers goes to the other rank, and then the device fails.
    fn fails(engine: &mut Engine<'_, Cpu<f32>>) -> Result<()> {
        let (team, (be, sums, State { shares, grads, .. })) = (engine.team, engine.lanes());
        sums.send(be, &team, shares, full(grads.as_mut().expect(TRAINS))?, Some(LAYERS))?;
        Err(Error::Device("the device is gone".into()))
    }

    /// What a rank had sent meanwhile waits for another that is not there yet: nobody waits for that.
    #[test]
    fn a_pass_that_fails_beside_what_travels_ends_all() {
        // Below those that the system deals out: no connection of another test takes it meanwhile.
        let drawn = || 12_000 + (RandomState::new().hash_one(0u8) % 16_000) as u16;
        let free = (0..200).find_map(|_| TcpListener::bind(("127.0.0.1", drawn())).ok()).expect("a port");
        let port = free.local_addr().unwrap().port();
        drop(free);
        std::thread::scope(|scope| {
            let (over, failed): (Sender<()>, Receiver<()>) = channel();
            let other = scope.spawn(move || {
                steps(0, port, move |_| {
                    failed.recv_timeout(Duration::from_secs(60)).expect("the other one ended");
                    Ok(())
                })
            });
            let begun = Instant::now();
            let e = steps(1, port, fails).unwrap_err();
            assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
            assert_eq!(e.to_string(), "the device is gone");
            over.send(()).unwrap();
            let e = other.join().unwrap().unwrap_err();
            // It has ended; or it is lost, where what it had sent is more than the system takes at once.
            assert!(e.to_string().starts_with("cannot add up gradients: rank 1 "), "{e}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        });
    }
}
