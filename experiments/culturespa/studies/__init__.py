"""Studies of a finished CultureSPA run: `python -m experiments.culturespa.studies.NAME RUN`.

selection       what the selection of training data does to the joint model     (Figure 4)
fractions       how much of the selected data a joint model needs
topics          which topics the selected data are about                        (Figure 3)
matrices        whether models differ from each other as countries do           (Figure 5)
guard           whether fine-tuning broke what the model could do before
learning_rate   which learning rate is best, by the loss on held-out questions
targets         the most likely option or the distribution of answers as what is trained toward
"""
