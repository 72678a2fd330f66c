//! Prompts of random English words, new ones for each round, so that no server can know them.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::arguments::WorkloadName;

/// Common words: one token each, with the space before it, in most vocabularies.
const WORDS: &str = "\
about above across action actor after again against agent air all almost along already also always among \
amount animal answer any appear apple area arm army around arrive art ask baby back bad bag ball bank bar base \
beach bear beat beautiful because become bed before begin behind believe below best better between beyond big \
bird black block blood blue board boat body bone book border both bottom box boy branch bread break bridge \
bright bring broken brother brown build building burn bus business but buy call camera camp can capital car \
card care carry case catch cause cell center century certain chair chance change chapter check child choice \
church circle city class clean clear climb clock close cloud club coast code coffee cold collect color come \
common company complete computer consider contain continue control cook cool copy corner correct cost could \
country couple course court cover create cross crowd cup current cut daily dance dark data daughter day dead \
deal dear death decide deep degree design desk develop different dinner direct discover distance doctor dog \
dollar door double down draw dream dress drink drive drop dry during dust each early earth east easy eat edge \
effect egg eight either electric else empty end energy engine enjoy enough enter equal even evening event ever \
every exact example except expect explain express eye face fact fair fall family famous far farm fast father \
favor fear feel feet few field fight figure fill final find fine finger finish fire first fish five flat \
floor flow flower fly follow food foot force foreign forest forget form forward found four frame free fresh \
friend from front fruit full fun game garden gas gate gather general gentle get girl give glass go gold good \
government grand grass great green ground group grow guess guide hair half hall hand happen happy hard hat \
have head health hear heart heat heavy height help here high hill history hit hold hole home hope horse \
hospital hot hotel hour house how huge human hundred hurry ice idea image important inch include increase \
industry inside instead interest iron island issue job join joy judge jump just keep key kind king kitchen \
knee know lady lake land language large last late laugh law lead leaf learn least leave left leg less lesson \
let letter level library lie life light like line list listen little live local long look lose lot love low \
lunch machine main major make man manner many map mark market master match matter may mean measure meat \
medical meet member memory metal method middle mile milk mind minute mirror miss model modern moment money \
month moon more morning most mother motion mountain mouth move much music name narrow nation nature near neck \
need never new news next nice night nine noise north nose note nothing notice number object ocean offer office \
often oil old once one only open order other our out outside over own page pain paint pair paper parent park \
part party pass past path pattern pay peace pen people perhaps period person phone photo piece place plain \
plan plane plant plate play please plenty pocket point police poor port position possible power practice \
prepare present press pretty price print private problem process produce program promise protect proud prove \
provide public pull purpose push put quality question quick quiet quite race radio rain raise range rate \
reach read ready real reason receive record red region remain remember repeat report rest result return rich \
ride right ring rise river road rock roll room root rope rose round row rule run safe sail salt same sand save \
say scale scene school science sea search season seat second secret see seed seem self sell send sense \
sentence separate serious serve set seven several shade shake shape share sharp she sheet ship shirt shoe \
shop short should shoulder shout show side sight sign silence silver similar simple since sing single sister \
sit six size skill skin sky sleep slow small smell smile smoke smooth snow social soft soil soldier some son \
song soon sort sound south space speak special speech speed spell spend sport spot spread spring square stage \
stand star start state station stay steam steel step stick still stone stop store storm story straight strange \
stream street strength strong student study subject success such sudden sugar suggest summer sun supply \
support sure surface surprise sweet swim system table tail take talk tall taste teach team tell ten test than \
thank that then there thick thin thing think third thought thousand three through throw ticket tie time tiny \
tire today together tone too tool top total touch toward town track trade train travel tree trip trouble \
truck true trust try turn twenty two type under unit until upon use usual valley value very view village \
visit voice wait walk wall want war warm wash watch water wave way weak wear weather week weight welcome west \
wet what wheel when where which while white whole why wide wife wild win wind window winter wire wish with \
woman wonder wood word work world worth would write wrong yard year yellow yes yet young zero";

/// A source of words that never repeats what another of its kind has said.
pub struct Prompts {
    words: Vec<&'static str>,
    random: StdRng,
}

impl Prompts {
    /// The prompts of one round of one workload. `side` tells apart the two servers that are compared, in
    /// case they are one.
    pub fn new(seed: u64, workload: WorkloadName, round: usize, side: usize) -> Self {
        let key = [seed, workload as u64, round as u64, side as u64];
        let mut bytes = [0; 32];
        for (place, part) in bytes.chunks_exact_mut(8).zip(key) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        Self::with(StdRng::from_seed(bytes))
    }

    /// The prompts of the first requests to a server.
    pub fn for_probe(seed: u64, side: usize) -> Self {
        Self::with(StdRng::seed_from_u64(seed ^ (0x70726f6265 << side)))
    }

    fn with(random: StdRng) -> Self {
        Self {
            words: WORDS.split_whitespace().collect(),
            random,
        }
    }

    /// A text of `count` words.
    pub fn text(&mut self, count: usize) -> String {
        let mut text = String::with_capacity(count * 7);
        for number in 0..count {
            if number > 0 {
                text.push(' ');
            }
            text.push_str(self.words[self.random.random_range(0..self.words.len())]);
        }
        text
    }

    /// A whole number of `range`, both ends included.
    pub fn between(&mut self, least: usize, most: usize) -> usize {
        self.random.random_range(least..=most)
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.random.random_bool(probability)
    }

    /// The time until the next of arrivals that come at random, `rate` a second in the mean: exponentially
    /// distributed.
    pub fn pause(&mut self, rate: f64) -> f64 {
        let uniform: f64 = self.random.random();
        -(1.0 - uniform).ln() / rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rounds_workloads_servers_and_seeds_differ_from_the_first_words_on() {
        let mut seen = BTreeSet::new();
        for seed in 0..3 {
            for workload in [WorkloadName::Swarm, WorkloadName::Burst] {
                for round in 0..3 {
                    for side in 0..2 {
                        let text = Prompts::new(seed, workload, round, side).text(4);
                        assert!(seen.insert(text));
                    }
                }
            }
        }
        let again = Prompts::new(0, WorkloadName::Swarm, 0, 0).text(4);
        assert!(seen.contains(&again), "a seed repeats its prompts");
    }

    #[test]
    fn texts_have_their_words() {
        let mut prompts = Prompts::for_probe(1, 0);
        assert_eq!(prompts.text(1200).split(' ').count(), 1200);
        assert_eq!(prompts.text(0), "");
    }

    #[test]
    fn pauses_have_the_mean_of_their_rate() {
        let mut prompts = Prompts::for_probe(7, 0);
        let sum: f64 = (0..20_000).map(|_| prompts.pause(4.0)).sum();
        assert!((sum / 20_000.0 - 0.25).abs() < 0.01, "{sum}");
    }
}
