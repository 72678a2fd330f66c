//! A radix tree over token ids at block granularity: which tokens' keys and values lie in which block.
//!
//! A node is one KV block and holds the 1 to `block_size` tokens it was computed for; the path from
//! the root gives the tokens before them. Only full nodes have children. A partly filled leaf is kept
//! so that the next turn of a conversation reuses it exactly to the token.
//!
//! Siblings are sorted by their tokens, and none is a prefix of another (a shorter leaf is replaced by
//! a longer one). So the sibling that shares most with a query stands next to the query's own place in
//! the order, and a partly filled prefix of the query directly before it: both are found in O(log n).
//!
//! The tree does not count references. Its owner says with [`RadixTree::set_leased`] which blocks
//! sequences use; a sequence always leases the whole path to the block it uses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;

use crate::ids::{BlockId, TokenId};

/// Keys and values of one namespace are never reused in another: a model (later: with an adapter).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Namespace(pub u64);

/// A node of one tree. Valid as long as the node's block is leased; roots are valid for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

#[derive(Debug)]
struct Node {
    place: Place,
    children: BTreeMap<Arc<[TokenId]>, NodeId>,
}

#[derive(Debug)]
enum Place {
    Root,
    Block(BlockNode),
}

#[derive(Debug)]
struct BlockNode {
    parent: NodeId,
    tokens: Arc<[TokenId]>,
    block: BlockId,
    /// Whether a sequence uses the block now.
    leased: bool,
    /// The tree's clock when it was last used.
    last_used: u64,
}

/// The longest prefix of some tokens that the tree holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Match {
    /// Blocks whose tokens all match, from the root on.
    pub full: Vec<BlockId>,
    /// The node of the last full block, or the root.
    pub node: NodeId,
    /// A further block, some of whose first tokens match.
    pub partial: Option<PartialMatch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialMatch {
    pub block: BlockId,
    /// At least 1.
    pub tokens: usize,
}

/// What became of a block that was offered to the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is in the tree now.
    Added(NodeId),
    /// It was in the tree as a partly filled leaf and holds more tokens now.
    Extended(NodeId),
    /// It took the place of `old`, a partly filled leaf with a prefix of its tokens.
    Replaced { node: NodeId, old: BlockId },
    /// The tree has these tokens already, in `block`; the offered one stays outside.
    Present { node: NodeId, block: BlockId },
}

#[derive(Debug)]
pub struct RadixTree {
    block_size: usize,
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    roots: HashMap<Namespace, NodeId>,
    by_block: HashMap<BlockId, NodeId>,
    /// Leaves that are not leased, least recently used first.
    evictable: BTreeSet<(u64, NodeId)>,
    clock: u64,
}

impl RadixTree {
    /// An empty tree of blocks of `block_size` tokens.
    pub fn new(block_size: usize) -> Self {
        assert!(block_size > 0, "a block holds at least one token");
        Self {
            block_size,
            nodes: Vec::new(),
            vacant: Vec::new(),
            roots: HashMap::new(),
            by_block: HashMap::new(),
            evictable: BTreeSet::new(),
            clock: 0,
        }
    }

    /// Whether `block` is in the tree.
    pub fn contains(&self, block: BlockId) -> bool {
        self.by_block.contains_key(&block)
    }

    /// The root of `namespace`, made if it is new.
    pub fn root(&mut self, namespace: Namespace) -> NodeId {
        match self.roots.get(&namespace) {
            Some(root) => *root,
            None => {
                let root = self.add(Node {
                    place: Place::Root,
                    children: BTreeMap::new(),
                });
                self.roots.insert(namespace, root);
                root
            }
        }
    }

    /// The longest prefix of `tokens` below `root`. A block found must be leased (or, for a partial
    /// match, touched) before anything is evicted.
    pub fn find(&self, root: NodeId, tokens: &[TokenId]) -> Match {
        let mut node = root;
        let mut full = Vec::new();
        let mut rest = tokens;
        while let Some((head, tail)) = rest.split_at_checked(self.block_size)
            && let Some(child) = self.node(node).children.get(head)
        {
            full.push(self.block_node(*child).block);
            node = *child;
            rest = tail;
        }
        let partial = self.closest_child(node, &rest[..rest.len().min(self.block_size)]);
        Match {
            full,
            node,
            partial,
        }
    }

    /// The child of `node` that shares most first tokens with `tokens`.
    fn closest_child(&self, node: NodeId, tokens: &[TokenId]) -> Option<PartialMatch> {
        let children = &self.node(node).children;
        let before = children
            .range::<[TokenId], _>((Unbounded, Included(tokens)))
            .next_back();
        let after = children
            .range::<[TokenId], _>((Included(tokens), Unbounded))
            .next();
        let shared = |child: Option<(&Arc<[TokenId]>, &NodeId)>| {
            let (key, node) = child?;
            let tokens = common_prefix(key, tokens);
            (tokens > 0).then(|| PartialMatch {
                block: self.block_node(*node).block,
                tokens,
            })
        };
        [shared(before), shared(after)]
            .into_iter()
            .flatten()
            .max_by_key(|partial| partial.tokens)
    }

    /// Offers `block`, computed for `tokens` (1 to `block_size`) after those of `parent` (full, or a
    /// root). The block is leased, and so is the path to `parent`.
    pub fn insert(&mut self, parent: NodeId, tokens: &[TokenId], block: BlockId) -> Inserted {
        assert!(
            (1..=self.block_size).contains(&tokens.len()),
            "a node holds 1..=block_size tokens"
        );
        let children = &self.node(parent).children;
        let after = children
            .range::<[TokenId], _>((Included(tokens), Unbounded))
            .next();
        if let Some((key, node)) = after
            && key.starts_with(tokens)
        {
            return Inserted::Present {
                node: *node,
                block: self.block_node(*node).block,
            };
        }
        let before = children
            .range::<[TokenId], _>((Unbounded, Included(tokens)))
            .next_back();
        match before {
            Some((key, node)) if tokens.starts_with(key) => {
                let (key, node) = (key.clone(), *node);
                self.lengthen(parent, &key, node, tokens, block)
            }
            _ => Inserted::Added(self.add_block(parent, tokens, block)),
        }
    }

    fn add_block(&mut self, parent: NodeId, tokens: &[TokenId], block: BlockId) -> NodeId {
        let tokens: Arc<[TokenId]> = tokens.into();
        let place = Place::Block(BlockNode {
            parent,
            tokens: tokens.clone(),
            block,
            leased: true,
            last_used: self.clock,
        });
        let node = self.add(Node {
            place,
            children: BTreeMap::new(),
        });
        self.node_mut(parent).children.insert(tokens, node);
        self.by_block.insert(block, node);
        self.refresh(parent);
        node
    }

    /// Gives a partly filled leaf more tokens, and with them maybe another block.
    fn lengthen(
        &mut self,
        parent: NodeId,
        key: &[TokenId],
        node: NodeId,
        tokens: &[TokenId],
        block: BlockId,
    ) -> Inserted {
        let tokens: Arc<[TokenId]> = tokens.into();
        let siblings = &mut self.node_mut(parent).children;
        siblings.remove(key);
        siblings.insert(tokens.clone(), node);
        let entry = self.block_node_mut(node);
        entry.tokens = tokens;
        let old = std::mem::replace(&mut entry.block, block);
        if old == block {
            return Inserted::Extended(node);
        }
        // The evictable set knows the node by its present stamp: take it out before the lease changes.
        self.by_block.remove(&old);
        self.by_block.insert(block, node);
        self.block_node_mut(node).leased = true;
        self.refresh(node);
        Inserted::Replaced { node, old }
    }

    /// Says whether any sequence uses `block`, after that has changed. Blocks outside the tree are ignored.
    pub fn set_leased(&mut self, block: BlockId, leased: bool) {
        if let Some(node) = self.by_block.get(&block).copied() {
            self.stamp(node);
            self.block_node_mut(node).leased = leased;
            self.refresh(node);
        }
    }

    /// Marks `block` as just used, though no sequence leases it (the source of a copy).
    pub fn touch(&mut self, block: BlockId) {
        if let Some(node) = self.by_block.get(&block).copied() {
            self.stamp(node);
            self.refresh(node);
        }
    }

    /// Removes the least recently used leaf that is not leased, and returns its block. O(log n).
    pub fn evict(&mut self) -> Option<BlockId> {
        let (_, node) = self.evictable.pop_first()?;
        let removed = self.nodes[node.0 as usize]
            .take()
            .expect("an evictable node exists");
        self.vacant.push(node);
        let Place::Block(BlockNode {
            parent,
            tokens,
            block,
            ..
        }) = removed.place
        else {
            unreachable!("a root is never evictable");
        };
        self.by_block.remove(&block);
        self.node_mut(parent).children.remove(&tokens);
        self.refresh(parent);
        Some(block)
    }

    /// Gives `node` the current time. Takes it off the evictable set, which files it by its old time.
    fn stamp(&mut self, node: NodeId) {
        self.clock += 1;
        let now = self.clock;
        let stale = (self.block_node(node).last_used, node);
        self.evictable.remove(&stale);
        self.block_node_mut(node).last_used = now;
    }

    /// Puts `node` on the evictable set, or takes it off, as its children and lease demand.
    fn refresh(&mut self, node: NodeId) {
        let entry = self.node(node);
        let Place::Block(block) = &entry.place else {
            return;
        };
        let key = (block.last_used, node);
        if entry.children.is_empty() && !block.leased {
            self.evictable.insert(key);
        } else {
            self.evictable.remove(&key);
        }
    }

    fn add(&mut self, node: Node) -> NodeId {
        match self.vacant.pop() {
            Some(id) => {
                self.nodes[id.0 as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                NodeId((self.nodes.len() - 1) as u32)
            }
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize]
            .as_ref()
            .expect("node ids in use refer to nodes")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize]
            .as_mut()
            .expect("node ids in use refer to nodes")
    }

    fn block_node(&self, id: NodeId) -> &BlockNode {
        match &self.node(id).place {
            Place::Block(node) => node,
            Place::Root => unreachable!("a root has no block"),
        }
    }

    fn block_node_mut(&mut self, id: NodeId) -> &mut BlockNode {
        match &mut self.node_mut(id).place {
            Place::Block(node) => node,
            Place::Root => unreachable!("a root has no block"),
        }
    }

    /// Checks every rule of the tree, given which blocks sequences lease. O(size), for tests and
    /// debug assertions.
    ///
    /// # Errors
    /// The first breach found.
    pub fn check_integrity(&self, leased: impl Fn(BlockId) -> bool) -> Result<(), String> {
        let roots: BTreeSet<NodeId> = self.roots.values().copied().collect();
        let mut blocks = 0;
        for (index, node) in self.nodes.iter().enumerate() {
            let id = NodeId(index as u32);
            let Some(node) = node else {
                if !self.vacant.contains(&id) {
                    return Err(format!("{id:?} is neither a node nor vacant"));
                }
                continue;
            };
            match &node.place {
                Place::Root if roots.contains(&id) => {}
                Place::Root => return Err(format!("{id:?} is a root of no namespace")),
                Place::Block(entry) => {
                    blocks += 1;
                    self.check_block(id, node, entry, leased(entry.block))?;
                }
            }
            let keys: Vec<_> = node.children.keys().collect();
            if let Some(pair) = keys.windows(2).find(|pair| pair[1].starts_with(pair[0])) {
                return Err(format!("siblings {pair:?} repeat each other"));
            }
        }
        if blocks != self.by_block.len() {
            return Err(format!("{blocks} nodes, {} blocks", self.by_block.len()));
        }
        match self
            .evictable
            .iter()
            .find(|(_, id)| self.nodes[id.0 as usize].is_none())
        {
            Some(stale) => Err(format!("{stale:?} is evictable and gone")),
            None => Ok(()),
        }
    }

    fn check_block(
        &self,
        id: NodeId,
        node: &Node,
        entry: &BlockNode,
        leased: bool,
    ) -> Result<(), String> {
        let full = entry.tokens.len() == self.block_size;
        let above = self.nodes[entry.parent.0 as usize].as_ref();
        let Some(above) = above.filter(|above| above.children.get(&entry.tokens) == Some(&id))
        else {
            return Err(format!("{id:?} is no child of its parent"));
        };
        if self.by_block.get(&entry.block) != Some(&id) {
            return Err(format!("{:?} does not lead to {id:?}", entry.block));
        }
        if entry.tokens.is_empty() || entry.tokens.len() > self.block_size {
            return Err(format!("{id:?} holds {} tokens", entry.tokens.len()));
        }
        if !full && !node.children.is_empty() {
            return Err(format!("{id:?} is partly filled and has children"));
        }
        if entry.leased != leased {
            return Err(format!(
                "{id:?}: leased is {leased}, the tree says {}",
                entry.leased
            ));
        }
        if let Place::Block(above) = &above.place
            && leased
            && !above.leased
        {
            return Err(format!("{id:?} is leased and its parent is not"));
        }
        let listed = self.evictable.contains(&(entry.last_used, id));
        let times_listed = self
            .evictable
            .iter()
            .filter(|(_, other)| *other == id)
            .count();
        if listed != (node.children.is_empty() && !leased) || times_listed != usize::from(listed) {
            return Err(format!(
                "{id:?} is on the evictable set wrongly: {times_listed} times"
            ));
        }
        Ok(())
    }
}

/// How many first tokens `a` and `b` share.
pub fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<TokenId> {
        text.bytes().map(|byte| TokenId(byte.into())).collect()
    }

    fn block(id: u32) -> BlockId {
        BlockId(id)
    }

    /// Full blocks (by id) and the partial match, of a query.
    fn find(tree: &mut RadixTree, query: &str) -> (Vec<u32>, Option<(u32, usize)>) {
        let root = tree.root(Namespace::default());
        let found = tree.find(root, &tokens(query));
        let full = found.full.iter().map(|block| block.0).collect();
        (
            full,
            found
                .partial
                .map(|partial| (partial.block.0, partial.tokens)),
        )
    }

    #[test]
    fn a_match_is_exact_to_the_token() {
        let mut tree = RadixTree::new(4);
        let root = tree.root(Namespace::default());
        let Inserted::Added(first) = tree.insert(root, &tokens("abcd"), block(1)) else {
            panic!()
        };
        tree.insert(first, &tokens("efgh"), block(2));
        tree.insert(first, &tokens("exy"), block(3));
        assert_eq!(find(&mut tree, "abcdefgh"), (vec![1, 2], None));
        assert_eq!(find(&mut tree, "abcdefgx"), (vec![1], Some((2, 3))));
        assert_eq!(find(&mut tree, "abcdexyz"), (vec![1], Some((3, 3))));
        assert_eq!(find(&mut tree, "abcde"), (vec![1], Some((2, 1))));
        assert_eq!(find(&mut tree, "abx"), (vec![], Some((1, 2))));
        assert_eq!(find(&mut tree, "xabcd"), (vec![], None));
        assert_eq!(find(&mut tree, ""), (vec![], None));
    }

    #[test]
    fn longer_leaves_replace_shorter_ones() {
        let mut tree = RadixTree::new(4);
        let root = tree.root(Namespace::default());
        let Inserted::Added(node) = tree.insert(root, &tokens("ab"), block(1)) else {
            panic!()
        };
        assert_eq!(
            tree.insert(root, &tokens("abc"), block(1)),
            Inserted::Extended(node)
        );
        let replaced = tree.insert(root, &tokens("abcd"), block(2));
        assert_eq!(
            replaced,
            Inserted::Replaced {
                node,
                old: block(1)
            }
        );
        let present = Inserted::Present {
            node,
            block: block(2),
        };
        assert_eq!(tree.insert(root, &tokens("ab"), block(3)), present);
        assert_eq!(tree.insert(root, &tokens("abcd"), block(3)), present);
        assert!(matches!(
            tree.insert(root, &tokens("abx"), block(3)),
            Inserted::Added(_)
        ));
        tree.check_integrity(|_| true).unwrap();
    }

    #[test]
    fn only_idle_leaves_go_and_the_oldest_first() {
        let mut tree = RadixTree::new(2);
        let root = tree.root(Namespace::default());
        let Inserted::Added(first) = tree.insert(root, &tokens("ab"), block(1)) else {
            panic!()
        };
        tree.insert(first, &tokens("cd"), block(2));
        tree.insert(root, &tokens("xy"), block(3));
        assert_eq!(tree.evict(), None);
        for id in [1, 2, 3] {
            tree.set_leased(block(id), false);
        }
        tree.touch(block(2));
        assert_eq!(tree.evict(), Some(block(3)));
        assert_eq!(tree.evict(), Some(block(2)));
        assert_eq!(tree.evict(), Some(block(1)));
        assert_eq!(tree.evict(), None);
        assert!(!tree.contains(block(1)));
        tree.check_integrity(|_| false).unwrap();
    }

    #[test]
    fn namespaces_share_nothing() {
        let mut tree = RadixTree::new(2);
        let (one, other) = (tree.root(Namespace(1)), tree.root(Namespace(2)));
        tree.insert(one, &tokens("ab"), block(1));
        assert_eq!(tree.find(one, &tokens("ab")).full, [block(1)]);
        assert_eq!(tree.find(other, &tokens("ab")).full, []);
        assert_eq!(tree.find(other, &tokens("ab")).partial, None);
    }
}
